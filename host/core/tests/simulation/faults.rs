//! Faults as they strike a world.

use std::rc::Rc;

use turnstile_core::{Input, Token};

use crate::host::Arrival;
use crate::random::Part;
use crate::script::Mishap;
use crate::world::World;

impl World {
    pub(crate) fn fault(&mut self, number: usize) {
        let script = Rc::clone(&self.script);
        let Some(fault) = script.faults.get(number) else { return };
        self.history.log.note(|| format!("fault {number}: {:?}", fault.what));
        let now = self.now;
        match &fault.what {
            Mishap::StreamBreaks { client, lost_to_host, lost_to_client, host_sees, client_sees } => {
                let stream = (*client, self.clients[*client].process.generation);
                self.links.cut(stream, now + lost_to_host, now + lost_to_client);
                self.stream_breaks(stream, *host_sees, *client_sees);
            }
            Mishap::ClientFreezes { client, duration } => {
                let frozen_until = &mut self.clients[*client].frozen_until;
                *frozen_until = (now + duration).max(*frozen_until);
            }
            Mishap::LinkStalls { client, to_host, duration } => {
                self.links.stall(Part::Stream { client: *client, to_host: *to_host }, now + duration);
            }
            Mishap::HostFreezes { host, duration } => {
                let frozen_until = &mut self.hosts[*host].frozen_until;
                *frozen_until = (now + duration).max(*frozen_until);
            }
            Mishap::HostDies { host, death } => self.kill_host(*host, *death),
            Mishap::HostDiesAfterGrant { host, death } => self.hosts[*host].doomed = Some(*death),
            Mishap::HostDrains { host } => self.reach_host(*host, Arrival::Order(Input::Drain)),
            Mishap::StoreAway { host, duration } => {
                let all = 0..self.hosts.len();
                for host in all.filter(|number| host.is_none_or(|host| host == *number)) {
                    for to_store in [true, false] {
                        self.links.stall(Part::StoreLink { host, to_store }, now + duration);
                    }
                }
            }
            Mishap::ClaimsFail { host, duration, landed } => self.hosts[*host].claims_fail = (now + duration, *landed),
            Mishap::ClaimsRefused { host, count } => self.hosts[*host].refusals += count,
            Mishap::RecordGone { key } => {
                let key = self.script.plan.keys[*key].clone();
                self.store.tamper(now, &key);
            }
            Mishap::Forced { host, key, all, delay } => {
                let key = self.script.plan.keys[*key].clone();
                let seen = self.history.ledgers[*host].tokens_held(&key).first().copied();
                let token = if *all { None } else { seen.and_then(as_token) };
                if *all || token.is_some() {
                    self.history.log.count("forced");
                    self.reach_host(*host, Arrival::Order(Input::ForceRelease { key, token, delay: *delay }));
                }
            }
        }
    }

    /// The world is left alone from now on.
    pub(crate) fn calm_down(&mut self) {
        for place in &mut self.hosts {
            (place.claims_fail, place.refusals, place.doomed) = ((0, 0), 0, None);
        }
        for place in &mut self.clients {
            place.process.rest();
        }
    }
}

fn as_token(number: u64) -> Option<Token> {
    let sequence = u32::try_from(number & u64::from(Token::SEQUENCE_MAX)).ok()?;
    Token::new(turnstile_core::Epoch(number >> Token::SEQUENCE_BITS), sequence)
}
