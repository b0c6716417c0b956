//! stub
use super::*;
#[derive(Clone, Debug)]
pub struct Config {
    pub path: std::path::PathBuf,
    pub lease_ttl: Duration,
    pub epoch_base: u64,
}
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct OpenError;
pub struct SqliteStore;
impl SqliteStore {
    pub fn open(_: Config, _: tokio::sync::mpsc::UnboundedSender<Event>) -> Result<Self, OpenError> {
        Err(OpenError)
    }
}
impl Store for SqliteStore {
    fn submit(&self, _: Operation) {}
}
