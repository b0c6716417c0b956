//! What comes in on a session's stream: bytes to message, message to inputs, inputs to a small engine.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use turnstile_core::{Config, Epoch, HeartbeatSeq, Input, SessionId};
use turnstile_fuzz::seeds;
use turnstile_fuzz::wire::{self, Parsed};
use turnstile_fuzz::world::{Promptness, World};
use turnstile_protocol::v1::{self, client_item::Item};

const SESSION: SessionId = SessionId(1);

fuzz_target!(
    init: seeds::write(&seeds::sessions()),
    |bytes: &[u8]| {
        let Ok(message) = v1::ClientMessage::decode(bytes) else { return };
        assert_eq!(v1::ClientMessage::decode(message.encode_to_vec().as_slice()).as_ref(), Ok(&message));
        let mut world = World::new(Config::default(), Promptness::Prompt, Epoch(0));
        world.give(Input::OpenSession { session: SESSION, seq: HeartbeatSeq(1) });
        for item in message.items {
            world.wait(Duration::from_millis(10));
            take(&mut world, item);
        }
    }
);

/// As the host does, but that a Hello may stand anywhere and the stream goes on after a violation.
fn take(world: &mut World, item: v1::ClientItem) {
    if let Some(Item::Hello(hello)) = item.item {
        let Some(resume) = hello.resume else { return };
        let length = wire::resume_length(&resume);
        let Ok(parsed) = wire::parse_resume(resume) else { return };
        let beliefs = &parsed.beliefs;
        let kept = beliefs.waiters.len() + beliefs.holds.len() + beliefs.releases.len() + parsed.refused.len();
        assert!(kept <= length, "a Resume of {length} entries became one of {kept}");
        world.give(Input::SuspendSession { session: SESSION });
        let seq = HeartbeatSeq(hello.heartbeat_seq);
        world.give(Input::ResumeSession { session: SESSION, seq, resume: parsed.beliefs });
    } else if let Ok(Parsed::Input(input)) = wire::parse_item(SESSION, item) {
        world.give(input);
    }
}
