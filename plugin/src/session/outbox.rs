//! What is to be sent, gathered into few messages.

use std::collections::VecDeque;

use prost::Message;
use turnstile_protocol::v1;

/// A message beyond this gets no more items.
const CHUNK_BYTES: usize = 64 << 10;

/// Items that wait to be sent, encoded.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    messages: VecDeque<Vec<u8>>,
}

impl Outbox {
    /// Adds an item, and hands it back.
    pub(super) fn push(&mut self, item: v1::ClientItem) -> v1::ClientItem {
        // Messages are lists, and so their encodings may be joined.
        let message = v1::ClientMessage { items: vec![item] };
        let encoded = match self.messages.back_mut() {
            Some(last) if last.len() < CHUNK_BYTES => last,
            _ => self.messages.push_back_mut(Vec::with_capacity(message.encoded_len())),
        };
        encoded.reserve(message.encoded_len());
        let _never_fails = message.encode(encoded);
        message.items.into_iter().next().unwrap_or_default()
    }

    /// The next message to send.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        self.messages.pop_front()
    }

    /// Drops what was not sent: its stream is gone.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }
}
