//! The filter's wasm file, as it was embedded when this program was built.

const EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/plugin.wasm"));

/// The environment variable that names another wasm file.
pub const OVERRIDE: &str = "TURNSTILE_PLUGIN_WASM";

/// Why there is no wasm file.
#[derive(Debug, thiserror::Error)]
pub enum NoPlugin {
    /// This program was built before the filter was.
    #[error(
        "this program was built without the filter; build it with `cargo xtask setup`, then build this program \
         again, or name a wasm file with {OVERRIDE}"
    )]
    NotEmbedded,
    /// The named file cannot be read.
    #[error("cannot read {path} (from {OVERRIDE}): {error}")]
    Unreadable {
        /// Which one.
        path: String,
        /// The system's word.
        error: std::io::Error,
    },
}

/// The bytes of the wasm file: the one that [`OVERRIDE`] names, else the embedded one.
///
/// # Errors
/// If neither is there.
pub fn bytes() -> Result<Vec<u8>, NoPlugin> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let show = path.to_string_lossy().into_owned();
        return std::fs::read(&path).map_err(|error| NoPlugin::Unreadable { path: show, error });
    }
    if EMBEDDED.is_empty() { Err(NoPlugin::NotEmbedded) } else { Ok(EMBEDDED.to_vec()) }
}
