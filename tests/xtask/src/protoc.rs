//! protoc, which compiles etcd's protocol when the crate etcd-client is built.

use std::fs;
use std::process::Command;

use crate::command::asked;
use crate::debian;
use crate::failure::Failure;
use crate::layout::Layout;
use crate::progress::Done;

/// The second has the files that every protocol may import; it is only recommended by the first.
const PACKAGES: [&str; 2] = ["protobuf-compiler", "libprotobuf-dev"];

/// What etcd's protocol imports of them.
const PROBE: &str = r#"syntax = "proto3";
import "google/protobuf/descriptor.proto";
import "google/protobuf/struct.proto";
message Probe { google.protobuf.Struct all = 1; google.protobuf.FileDescriptorSet files = 2; }
"#;

/// Makes sure that it is there and works.
pub(crate) fn ensure(layout: &Layout) -> Result<((), Done), Failure> {
    if works(layout)? {
        return Ok(((), Done::Before));
    }
    debian::install(layout, &PACKAGES, "compiling etcd's protocol")?;
    if works(layout)? {
        return Ok(((), Done::Now));
    }
    Err(Failure::new(format!("{} are installed, but protoc cannot compile a small file", PACKAGES.join(" and "))).advise(
        "is another protoc first on the PATH? PROTOC names the right one, PROTOC_INCLUDE the directory of google/protobuf",
    ))
}

/// Asks it to compile a file, in the way in which the crates find it: by the same variables.
fn works(layout: &Layout) -> Result<bool, Failure> {
    let dir = layout.parts().join("protoc");
    fs::create_dir_all(&dir).map_err(Failure::io(format!("making {}", dir.display())))?;
    let (source, output) = (dir.join("probe.proto"), dir.join("probe.bin"));
    fs::write(&source, PROBE).map_err(Failure::io(format!("writing {}", source.display())))?;
    let mut protoc = Command::new(std::env::var_os("PROTOC").unwrap_or_else(|| "protoc".into()));
    protoc.arg("-I").arg(&dir);
    if let Some(include) = std::env::var_os("PROTOC_INCLUDE") {
        protoc.arg("-I").arg(include);
    }
    protoc.arg("--include_imports").arg("--descriptor_set_out").arg(&output).arg(&source);
    Ok(asked(&mut protoc).is_some())
}
