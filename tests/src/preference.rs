//! Which host a key prefers, computed apart from the filter: as its documentation says, and as other tools would.

/// The places of the clusters, the one that `key` (with its namespace) prefers first.
pub fn order(clusters: &[impl AsRef<str>], key: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..clusters.len()).collect();
    order.sort_by_key(|place| std::cmp::Reverse(mix(hash(clusters[*place].as_ref()) ^ hash(key))));
    order
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes().fold(14_695_981_039_346_656_037, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211))
}

/// The finaliser of MurmurHash3, 64 bits.
fn mix(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}
