//! The shipped Envoy bootstrap, changed only by structure: every place that a test fills in must exist in the file.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Map, Value, json};

/// The file as it is shipped.
pub const SHIPPED: &str = include_str!("../../envoy/envoy.yaml");

const CLUSTERS: &str = "/static_resources/clusters";
const LISTENER: &str = "/static_resources/listeners/0/address/socket_address";
const MANAGER: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config";
const FILTERS: &str = "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";
const ROUTES: &str =
    "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0/routes";

/// What says how to change it.
const MANUAL: &str = include_str!("../../envoy/README.md");

/// An Envoy bootstrap under change.
pub struct Bootstrap(Value);

impl Bootstrap {
    /// The shipped file.
    ///
    /// # Panics
    /// If it is no YAML.
    pub fn shipped() -> Self {
        Self(serde_saphyr::from_str(SHIPPED).expect("envoy.yaml is YAML"))
    }

    /// The shipped file, changed for several hosts as the manual shows: its clusters are in place of the one host's, and
    /// its configuration in place of the filter's. Also the names of those clusters.
    ///
    /// # Panics
    /// If the manual shows no such thing, or clusters that differ from the shipped one in more than name and address.
    pub fn as_the_manual_says() -> (Self, Vec<String>) {
        let mut bootstrap = Self::shipped();
        let configuration: Value =
            serde_json::from_str(manual_block("json")).expect("the manual's configuration is JSON");
        bootstrap.configure(&configuration);
        let shown: Vec<Value> = serde_saphyr::from_str(manual_block("yaml")).expect("the manual's clusters are YAML");
        let shipped = bootstrap.take_cluster("turnstile_host");
        let names = shown.iter().map(|cluster| cluster["name"].as_str().expect("a name").to_owned()).collect();
        for cluster in &shown {
            let mut same = shipped.clone();
            same["name"] = cluster["name"].clone();
            same["load_assignment"] = cluster["load_assignment"].clone();
            assert_eq!(*cluster, same, "the manual's clusters are as the shipped one");
        }
        bootstrap.list(CLUSTERS).extend(shown);
        (bootstrap, names)
    }

    /// Any other bootstrap.
    pub fn of(bootstrap: Value) -> Self {
        Self(bootstrap)
    }

    /// Puts in what differs from one machine to the next: ports that Envoy chooses itself, and where things are.
    pub fn place(&mut self, host: SocketAddr, upstream: SocketAddr, plugin: &Path) -> &mut Self {
        self.place_all(&[("turnstile_host", host)], upstream, plugin)
    }

    /// The same for several hosts, by the names of their clusters.
    pub fn place_all(&mut self, hosts: &[(&str, SocketAddr)], upstream: SocketAddr, plugin: &Path) -> &mut Self {
        self.replace(&format!("{LISTENER}/port_value"), json!(0));
        self.replace("/admin/address/socket_address/port_value", json!(0));
        self.address("app", upstream);
        for (cluster, address) in hosts {
            self.address(cluster, *address);
        }
        let wasm = format!("{}/typed_config/config/vm_config/code/local/filename", filter("turnstile", &self.0));
        self.replace(&wasm, json!(plugin));
        self
    }

    /// Replaces the cluster of the one host by copies of it: one for each host, with its name and address.
    pub fn several_hosts(&mut self, hosts: &[(&str, SocketAddr)]) -> &mut Self {
        let shipped = self.take_cluster("turnstile_host");
        for (name, _) in hosts {
            let mut cluster = shipped.clone();
            cluster["name"] = json!(name);
            cluster["load_assignment"]["cluster_name"] = json!(name);
            self.list(CLUSTERS).push(cluster);
        }
        for (name, address) in hosts {
            self.address(name, *address);
        }
        self
    }

    /// Puts in the filter's configuration.
    pub fn configure(&mut self, configuration: &Value) -> &mut Self {
        let place = format!("{}/typed_config/config/configuration/value", filter("turnstile", &self.0));
        self.replace(&place, json!(configuration.to_string()))
    }

    /// Replaces a value.
    ///
    /// # Panics
    /// If the file has no such place, or another type of value there.
    pub fn replace(&mut self, pointer: &str, value: Value) -> &mut Self {
        let place = self.0.pointer_mut(pointer).unwrap_or_else(|| panic!("envoy.yaml has no {pointer}"));
        let same = std::mem::discriminant(place) == std::mem::discriminant(&value);
        assert!(same, "envoy.yaml has {place} at {pointer}, which is no place for {value}");
        *place = value;
        self
    }

    /// Adds a field to the HTTP connection manager.
    pub fn manager(&mut self, field: &str, value: Value) -> &mut Self {
        self.object(MANAGER).insert(field.to_owned(), value);
        self
    }

    /// Adds a field to the node, the admin or another object of the file.
    pub fn add(&mut self, pointer: &str, field: &str, value: Value) -> &mut Self {
        self.object(pointer).insert(field.to_owned(), value);
        self
    }

    /// Adds a route before the shipped one.
    pub fn route(&mut self, route: Value) -> &mut Self {
        self.list(ROUTES).insert(0, route);
        self
    }

    /// Adds an HTTP filter right before the router.
    pub fn filter_before_router(&mut self, filter: Value) -> &mut Self {
        let filters = self.list(FILTERS);
        let router = filters.len() - 1;
        filters.insert(router, filter);
        self
    }

    /// Adds a cluster of one address.
    pub fn cluster(&mut self, name: &str, address: SocketAddr) -> &mut Self {
        let cluster = json!({
            "name": name, "type": "STATIC", "connect_timeout": "2s",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": {
                "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } } } }] }] }
        });
        self.list(CLUSTERS).push(cluster);
        self
    }

    /// The place of the cluster that was added last.
    pub fn last_cluster(&mut self) -> String {
        format!("{CLUSTERS}/{}", self.list(CLUSTERS).len() - 1)
    }

    /// The bootstrap as JSON, which Envoy reads as well as YAML.
    pub fn to_json(&self) -> String {
        self.0.to_string()
    }

    fn take_cluster(&mut self, name: &str) -> Value {
        let clusters = self.list(CLUSTERS);
        let place = clusters.iter().position(|entry| entry["name"] == name);
        clusters.remove(place.unwrap_or_else(|| panic!("envoy.yaml has no cluster {name}")))
    }

    fn address(&mut self, cluster: &str, address: SocketAddr) {
        let clusters = self.list(CLUSTERS);
        let index = clusters.iter().position(|entry| entry["name"] == cluster);
        let index = index.unwrap_or_else(|| panic!("envoy.yaml has no cluster {cluster}"));
        let place =
            format!("{CLUSTERS}/{index}/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address");
        self.replace(&format!("{place}/address"), json!(address.ip().to_string()));
        self.replace(&format!("{place}/port_value"), json!(address.port()));
    }

    fn object(&mut self, pointer: &str) -> &mut Map<String, Value> {
        let place = self.0.pointer_mut(pointer).unwrap_or_else(|| panic!("envoy.yaml has no {pointer}"));
        place.as_object_mut().unwrap_or_else(|| panic!("{pointer} of envoy.yaml is no object"))
    }

    fn list(&mut self, pointer: &str) -> &mut Vec<Value> {
        let place = self.0.pointer_mut(pointer).unwrap_or_else(|| panic!("envoy.yaml has no {pointer}"));
        place.as_array_mut().unwrap_or_else(|| panic!("{pointer} of envoy.yaml is no list"))
    }
}

/// The only block of this language in the manual's part about several hosts.
fn manual_block(language: &str) -> &'static str {
    let (_, part) = MANUAL.split_once("\n## Several hosts\n").expect("the manual has a part about several hosts");
    let (_, block) = part.split_once(&format!("\n```{language}\n")).expect("with a block of this language");
    block.split_once("\n```\n").expect("which ends").0
}

fn filter(name: &str, bootstrap: &Value) -> String {
    let filters = bootstrap.pointer(FILTERS).and_then(Value::as_array).expect("envoy.yaml has HTTP filters");
    let index = filters.iter().position(|entry| entry["name"] == name);
    format!("{FILTERS}/{}", index.unwrap_or_else(|| panic!("envoy.yaml has no filter {name}")))
}
