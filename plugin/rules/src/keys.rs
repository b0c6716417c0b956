//! The lock keys of one request.

use crate::KEY_MAX_BYTES;
use crate::mode::Mode;
use crate::request::RequestFault;

/// The full lock keys of one request, `namespace/key` each, in the order of its rule: 1 to
/// [`KEYS_MAX`](crate::KEYS_MAX), no two of them equal. Each is visible ASCII without commas, at most [`KEY_MAX_BYTES`]
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockKeys {
    /// Joined by commas. Together with `more` this makes one allocation of the usual case, which is one key.
    text: String,
    first: Mode,
    more: Vec<Mode>,
}

impl LockKeys {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), first: Mode::default(), more: Vec::new() }
    }

    /// The keys, joined by commas: as the upstream sees them.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The keys, joined by commas: as the upstream sees them.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Each key with its mode.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Mode)> {
        let modes = core::iter::once(&self.first).chain(&self.more);
        // One key is not searched for a comma.
        self.text.splitn(self.more.len() + 1, ',').zip(modes.copied())
    }

    /// Adds the key that `write` appends to a text. If it is there already, it is needed in both modes.
    pub(crate) fn push(
        &mut self,
        mode: Mode,
        write: impl FnOnce(&mut String) -> Result<(), RequestFault>,
    ) -> Result<(), RequestFault> {
        let end = self.text.len();
        if end > 0 {
            self.text.push(',');
        }
        let start = self.text.len();
        write(&mut self.text)?;
        let (before, key) = (self.text.get(..end).unwrap_or_default(), self.text.get(start..).unwrap_or_default());
        if key.len() > KEY_MAX_BYTES {
            return Err(RequestFault::KeyTooLong);
        }
        if end == 0 {
            self.first = mode;
            return Ok(());
        }
        let Some(earlier) = before.split(',').position(|earlier| earlier == key) else {
            self.more.push(mode);
            return Ok(());
        };
        self.text.truncate(end);
        let its = earlier.checked_sub(1).map_or(Some(&mut self.first), |index| self.more.get_mut(index));
        if let Some(its) = its {
            *its = its.and(mode);
        }
        Ok(())
    }
}
