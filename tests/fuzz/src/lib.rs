//! What the fuzz targets share. `cargo xtask fuzz` builds and runs them, and says how to replay what they find.

pub mod model;
pub mod request;
pub mod script;
pub mod seeds;
pub mod world;

/// The host's own parser of messages. Compiled here by itself: with the whole host around it, a build of the targets
/// would take many times as long.
#[path = "../../../host/src/wire.rs"]
pub mod wire;
