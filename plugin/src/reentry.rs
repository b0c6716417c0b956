//! Re-entry: a request that knows the holder secret of a live hold joins it, instead of waiting for it.

use core::fmt;

use turnstile_protocol::HOLDER_SECRET_BYTES;

/// What opens a hold to others. Whoever knows it holds the locks too.
#[derive(Clone, PartialEq, Eq)]
pub struct HolderSecret([u8; HOLDER_SECRET_BYTES]);

impl HolderSecret {
    /// As the host sends it; `None` if it is none.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// As a header carries it: two hexadecimal digits for every byte, and nothing else.
    pub fn from_header(value: &[u8]) -> Option<Self> {
        let mut secret = [0; HOLDER_SECRET_BYTES];
        if value.len() != 2 * secret.len() {
            return None;
        }
        for (byte, digits) in secret.iter_mut().zip(value.chunks_exact(2)) {
            for &digit in digits {
                *byte = *byte << 4 | u8::try_from(char::from(digit).to_digit(16)?).ok()?;
            }
        }
        Some(Self(secret))
    }

    /// The name of the incarnation whose hold it opens, as a Welcome has it; `None` if `secret` is none.
    pub fn incarnation_of(secret: &[u8]) -> Option<String> {
        let name = secret.first_chunk().filter(|_| secret.len() == HOLDER_SECRET_BYTES)?;
        Some(format!("{:016x}", u64::from_be_bytes(*name)))
    }

    /// As the host takes it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// As a header carries it.
impl fmt::Display for HolderSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// It must not get into a log.
impl fmt::Debug for HolderSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HolderSecret(..)")
    }
}

/// How a hold is shared with requests that belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reentry {
    /// Not at all.
    #[default]
    Closed,
    /// Others may join the hold.
    Open,
    /// The hold of this secret is joined.
    Join(HolderSecret),
}

impl Reentry {
    /// For a request under a re-entrant rule, by the value of its holder header. `None`: the header names no hold.
    pub fn of_header(value: Option<&[u8]>) -> Option<Self> {
        match value {
            None => Some(Self::Open),
            Some(value) => HolderSecret::from_header(value).map(Self::Join),
        }
    }
}

/// Whose hold it is that was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kin {
    /// The request's own.
    #[default]
    None,
    /// The request's own, and by this secret others join it.
    Founder(HolderSecret),
    /// Another request's, by this secret.
    Member(HolderSecret),
}

impl Kin {
    /// By which others join the hold.
    pub fn secret(&self) -> Option<&HolderSecret> {
        match self {
            Self::None => None,
            Self::Founder(secret) | Self::Member(secret) => Some(secret),
        }
    }
}

/// The secret of a hold that has just ended, because the proxy follows a redirect of the upstream by itself. The request
/// comes again in the same breath, with the headers that the upstream was sent: it seems to bring its own secret.
#[derive(Debug, Default)]
pub struct Redirected(Option<HolderSecret>);

impl Redirected {
    /// The request that had such a hold comes again.
    pub fn expect(&mut self, kin: Kin) {
        self.0 = match kin {
            Kin::Founder(secret) => Some(secret),
            // What it joined may go on.
            Kin::None | Kin::Member(_) => None,
        };
    }

    /// What a request asks for that seems to ask for `reentry`.
    pub fn correct(&mut self, reentry: Reentry) -> Reentry {
        match (self.0.take(), reentry) {
            (Some(own), Reentry::Join(brought)) if own == brought => Reentry::Open,
            (_, reentry) => reentry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "000102030405060708090a0b0c0d0e0f10a0b0c0d0e0f0ff";

    #[test]
    fn secrets_are_the_same_on_the_wire_and_in_headers() {
        let secret = HolderSecret::from_header(TEXT.as_bytes()).expect("a secret");
        assert_eq!(secret.to_string(), TEXT);
        assert_eq!((secret.as_bytes()[15], secret.as_bytes()[23]), (0x0f, 0xff));
        assert_eq!(HolderSecret::from_wire(secret.as_bytes()), Some(secret.clone()));
        assert_eq!(HolderSecret::from_header(TEXT.to_uppercase().as_bytes()), Some(secret.clone()));
        assert_eq!(HolderSecret::incarnation_of(secret.as_bytes()).as_deref(), Some(&TEXT[..16]));
        assert_eq!([&[1; 23][..], &[]].map(HolderSecret::incarnation_of), [None, None]);
        assert!(!format!("{secret:?}").contains("0a"));
        for length in [0, 23, 25] {
            assert_eq!(HolderSecret::from_wire(&vec![1; length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_redirected_request_does_not_bring_its_own_secret() {
        let secret = |byte| HolderSecret([byte; HOLDER_SECRET_BYTES]);
        let mut redirected = Redirected::default();
        assert_eq!(redirected.correct(Reentry::Join(secret(1))), Reentry::Join(secret(1)));
        redirected.expect(Kin::Founder(secret(1)));
        assert_eq!(redirected.correct(Reentry::Join(secret(1))), Reentry::Open);
        assert_eq!(redirected.correct(Reentry::Join(secret(1))), Reentry::Join(secret(1)), "once");
        redirected.expect(Kin::Founder(secret(1)));
        assert_eq!(redirected.correct(Reentry::Join(secret(2))), Reentry::Join(secret(2)), "another request");
        for kin in [Kin::Member(secret(1)), Kin::None] {
            redirected.expect(kin.clone());
            assert_eq!(redirected.correct(Reentry::Join(secret(1))), Reentry::Join(secret(1)), "{kin:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_secret_names_no_hold() {
        assert_eq!(Reentry::of_header(None), Some(Reentry::Open));
        let is_join = |value: &str| Reentry::of_header(Some(value.as_bytes())).map(|it| matches!(it, Reentry::Join(_)));
        assert_eq!(is_join(TEXT), Some(true));
        let doubled = format!("{TEXT},{TEXT}");
        let (odd, long, spaced) = (&TEXT[1..], format!("{TEXT}00"), format!(" {}", &TEXT[1..]));
        let (signed, prefixed) = (format!("+{}", &TEXT[1..]), format!("0x{}", &TEXT[2..]));
        for value in ["", "0", odd, &long, &spaced, &signed, &prefixed, &doubled, &"g".repeat(48), &"é".repeat(24)] {
            assert_eq!(is_join(value), None, "{value}");
        }
    }
}
