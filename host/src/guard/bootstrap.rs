//! The Envoy bootstrap of a guard: the shipped one, with addresses, wasm file and rules put in their places.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::Upstream;

/// The same file that users take for their own Envoy, and that the tests run.
const SHIPPED: &str = include_str!("../../../envoy/envoy.yaml");

/// The cluster of the host in the shipped bootstrap.
pub const HOST_CLUSTER: &str = "turnstile_host";

/// What is put into the shipped bootstrap.
#[derive(Debug)]
pub(super) struct Bootstrap<'a> {
    pub(super) listen: SocketAddr,
    pub(super) upstream: &'a Upstream,
    pub(super) host: SocketAddr,
    pub(super) wasm_file: &'a Path,
    pub(super) filter_config: &'a str,
}

/// A place that must be in the shipped bootstrap is not.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Not YAML.
    #[error("{0}")]
    Yaml(String),
    /// No such place.
    #[error("there is no {0}")]
    Missing(String),
}

impl Bootstrap<'_> {
    /// The bootstrap as JSON, which Envoy reads as well as YAML.
    pub(super) fn to_json(&self) -> Result<String, Broken> {
        let mut root: Value = serde_saphyr::from_str(SHIPPED).map_err(|error| Broken::Yaml(error.to_string()))?;
        // Any free port: nobody but this guard talks to it, and it finds the port in a file.
        set_address(at(&mut root, "/admin/address")?, "127.0.0.1", 0)?;
        let listener = at(&mut root, "/static_resources/listeners/0")?;
        set_address(at(listener, "/address")?, &self.listen.ip().to_string(), self.listen.port())?;
        let filter = at(listener, "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config")?;
        *at(filter, "/vm_config/code/local/filename")? = json!(self.wasm_file);
        *at(filter, "/configuration/value")? = json!(self.filter_config);

        let app = cluster(&mut root, "app")?;
        *at(app, "/type")? = json!(if self.upstream.is_address() { "STATIC" } else { "STRICT_DNS" });
        set_address(at(app, ENDPOINT)?, &self.upstream.host, self.upstream.port)?;
        let host = cluster(&mut root, HOST_CLUSTER)?;
        set_address(at(host, ENDPOINT)?, &self.host.ip().to_string(), self.host.port())?;
        Ok(root.to_string())
    }
}

const ENDPOINT: &str = "/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address";

fn at<'v>(value: &'v mut Value, pointer: &str) -> Result<&'v mut Value, Broken> {
    value.pointer_mut(pointer).ok_or_else(|| Broken::Missing(pointer.into()))
}

fn cluster<'v>(root: &'v mut Value, name: &str) -> Result<&'v mut Value, Broken> {
    at(root, "/static_resources/clusters")?
        .as_array_mut()
        .and_then(|clusters| clusters.iter_mut().find(|cluster| cluster.get("name") == Some(&json!(name))))
        .ok_or_else(|| Broken::Missing(format!("cluster {name}")))
}

fn set_address(address: &mut Value, host: &str, port: u16) -> Result<(), Broken> {
    *at(address, "/socket_address/address")? = json!(host);
    *at(address, "/socket_address/port_value")? = json!(port);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_finds_its_place_in_the_shipped_bootstrap() {
        let bootstrap = Bootstrap {
            listen: "127.0.0.1:1111".parse().unwrap(),
            upstream: &"http://billing.internal:2222".parse().unwrap(),
            host: "127.0.0.1:3333".parse().unwrap(),
            wasm_file: Path::new("some/plugin.wasm"),
            filter_config: "{\"rules\": []}",
        };
        let json = bootstrap.to_json().unwrap();
        for value in ["1111", "billing.internal", "STRICT_DNS", "2222", "3333", "some/plugin.wasm", "rules\\\": []"] {
            assert!(json.contains(value), "{value} is missing in {json}");
        }
        for shipped in ["10000", "8080", "7878", "9901", "/etc/turnstile"] {
            assert!(!json.contains(shipped), "{shipped} is left in {json}");
        }
    }
}
