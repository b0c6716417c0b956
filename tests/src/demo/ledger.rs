//! The legacy bank's balances: one small file per account, read and written without any locking.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name of an account, good for a file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountId(String);

impl AccountId {
    /// Takes up to 64 letters, digits, `-` and `_`.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        ((1..=64).contains(&text.len()) && text.bytes().all(good)).then(|| Self(text.to_owned()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Balances in a directory.
#[derive(Clone)]
pub struct Ledger(PathBuf);

impl Ledger {
    /// The balances of the bank whose data is in `directory`.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let accounts = directory.join("accounts");
        fs::create_dir_all(&accounts)?;
        Ok(Self(accounts))
    }

    /// The balance, if there is such an account.
    pub fn read(&self, account: &AccountId) -> io::Result<Option<i64>> {
        match fs::read_to_string(self.0.join(account.as_str())) {
            Ok(text) => text.trim().parse().map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts the balance there. The file is swapped whole, so that what gets lost is updates and never the account;
    /// `execution` keeps two writers out of each other's half-written file.
    pub fn write(&self, account: &AccountId, balance: i64, execution: &str) -> io::Result<()> {
        let new = self.0.join(format!(".{}.{execution}", account.as_str()));
        fs::write(&new, format!("{balance}\n"))?;
        fs::rename(new, self.0.join(account.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_names_cannot_leave_the_directory() {
        for bad in ["", ".", "..", "../x", "a/b", "a.b", "ä", &"x".repeat(65)] {
            assert_eq!(AccountId::parse(bad), None, "{bad:?}");
        }
        assert!(AccountId::parse("plain-1_Z").is_some());
    }

    #[test]
    fn a_balance_is_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let account = AccountId::parse("7").unwrap();
        assert_eq!(ledger.read(&account).unwrap(), None);
        ledger.write(&account, -3, "1-1").unwrap();
        assert_eq!(ledger.read(&account).unwrap(), Some(-3));
    }
}
