//! The test's hand on one model host.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;
use std::time::Duration;

use turnstile_protocol::v1::{Acquire, Ending, Grant, Hello, LostReason, RejectReason, client_item::Item};

use super::peer::{Link, Peer, Policy, Received};
use super::vm::{Vm, VmError};
use super::worker::World;

/// A host that tests script. Ids are those of the Acquires. What a call sets off at this instant has happened when it
/// returns.
pub struct ModelHost {
    world: Rc<RefCell<World>>,
    index: usize,
}

impl ModelHost {
    pub(super) fn new(world: Rc<RefCell<World>>, index: usize) -> Self {
        Self { world, index }
    }

    /// What to do with Acquires from now on; [`Policy::Grant`] at first.
    pub fn policy(&self, policy: Policy) {
        self.act(|peer, _| peer.policy = policy);
    }

    /// Session TTL, heartbeat period, and the validity of grants and acks.
    pub fn times(&self, ttl: Duration, heartbeat: Duration, valid: Duration) {
        self.act(|peer, _| (peer.ttl, peer.heartbeat, peer.valid) = (ttl, heartbeat, valid));
    }

    /// Grants one request.
    pub fn grant(&self, id: u64) {
        self.act(|peer, now| peer.grant(now, id));
    }

    /// Grants all that wait, in one message.
    pub fn grant_all(&self) {
        self.act(|peer, now| peer.waiting().into_iter().for_each(|id| peer.grant(now, id)));
    }

    /// Grants one request, as a faulty host would.
    pub fn grant_spoilt(&self, id: u64, spoil: impl FnOnce(&mut Grant)) {
        self.act(|peer, now| peer.grant_spoilt(now, id, spoil));
    }

    /// Rejects one request.
    pub fn reject(&self, id: u64, reason: RejectReason) {
        self.act(|peer, _| peer.reject(id, reason));
    }

    /// Ends one hold.
    pub fn lose(&self, id: u64, reason: LostReason) {
        self.act(|peer, _| peer.lose(id, reason));
    }

    /// Begins to drain.
    pub fn go_away(&self) {
        self.act(|peer, _| peer.go_away());
    }

    /// Stops reading and writing; connections stand.
    pub fn freeze(&self) {
        self.act(|peer, _| peer.link = Link::Frozen);
    }

    /// Goes on where it was frozen.
    pub fn thaw(&self) {
        self.act(|peer, _| peer.link = Link::Up);
    }

    /// Is killed: the stream ends, further connections are refused. It keeps its table: [`ModelHost::restart`] does not.
    pub fn go_down(&self) {
        self.act(|peer, _| peer.link = Link::Down);
    }

    /// Can be reached again.
    pub fn come_up(&self) {
        self.act(|peer, _| peer.link = Link::Up);
    }

    /// The stream breaks, with what is on it; further connections work.
    pub fn break_stream(&self) {
        self.act_on_vm(|peer, vm| peer.break_streams(vm, 13));
    }

    /// The next resume is answered with a new session.
    pub fn refuse_resume(&self) {
        self.act(|peer, _| peer.refuse_resume = true);
    }

    /// Comes up as another run, which knows nothing.
    pub fn restart(&self) {
        self.act_on_vm(Peer::restart);
    }

    /// Everything that it took from its streams.
    pub fn received(&self) -> Vec<Received> {
        self.peer().received.clone()
    }

    /// Forgets what it received so far.
    pub fn clear(&self) {
        self.peer().received.clear();
    }

    /// All Hellos.
    pub fn hellos(&self) -> Vec<Hello> {
        self.select(|item| if let Item::Hello(hello) = item { Some(hello.clone()) } else { None })
    }

    /// All Acquires.
    pub fn acquires(&self) -> Vec<Acquire> {
        self.select(|item| if let Item::Acquire(acquire) = item { Some(acquire.clone()) } else { None })
    }

    /// The ids of all Cancels.
    pub fn cancels(&self) -> Vec<u64> {
        self.select(|item| if let Item::Cancel(cancel) = item { Some(cancel.id) } else { None })
    }

    /// All Releases that came by themselves (not in a Resume).
    pub fn releases(&self) -> Vec<(u64, Ending)> {
        self.select(|item| if let Item::Release(release) = item { Some((release.id, release.ending())) } else { None })
    }

    /// How many heartbeats came.
    pub fn heartbeats(&self) -> usize {
        self.select(|item| if let Item::Heartbeat(_) = item { Some(()) } else { None }).len()
    }

    /// Ids of the requests that wait, as the host sees it.
    pub fn waiting(&self) -> Vec<u64> {
        self.peer().waiting()
    }

    /// Ids of the holds, as the host sees it.
    pub fn holding(&self) -> Vec<u64> {
        self.peer().holding()
    }

    /// Until when the plugin may believe in its holds: the latest promise that this host made.
    pub fn promise(&self) -> Option<Duration> {
        self.peer().promise()
    }

    fn select<T>(&self, pick: impl Fn(&Item) -> Option<T>) -> Vec<T> {
        self.peer().received.iter().filter_map(|received| pick(&received.item)).collect()
    }

    fn peer(&self) -> RefMut<'_, Peer> {
        RefMut::map(self.world.borrow_mut(), |world| &mut world.peers[self.index])
    }

    fn act(&self, what: impl FnOnce(&mut Peer, Duration)) {
        let mut world = self.world.borrow_mut();
        let now = world.vm.state().now;
        what(&mut world.peers[self.index], now);
        world.settle();
    }

    fn act_on_vm(&self, what: impl FnOnce(&mut Peer, &mut Vm) -> Result<(), VmError>) {
        let mut world = self.world.borrow_mut();
        let World { vm, peers, .. } = &mut *world;
        what(&mut peers[self.index], vm).unwrap_or_else(|error| panic!("{error}"));
        world.settle();
    }
}
