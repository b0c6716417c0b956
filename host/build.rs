//! Embeds the filter's wasm file, if it has been built: `cargo xtask setup` builds it, `TURNSTILE_PLUGIN_WASM` names
//! another one. Without it everything builds too, and `turnstile` says at run time where to get the file.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-env-changed=TURNSTILE_PLUGIN_WASM");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let built = manifest.join("../target/turnstile/plugin.wasm");
    let wasm = env::var_os("TURNSTILE_PLUGIN_WASM").map_or(built, PathBuf::from);
    println!("cargo:rerun-if-changed={}", wasm.display());
    let bytes = if wasm.exists() { fs::read(&wasm)? } else { Vec::new() };
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("plugin.wasm"), bytes)?;
    Ok(())
}
