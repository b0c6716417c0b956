//! Which host a key prefers: rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit
//! rates", 1998). Each cluster has a weight for each key, and the highest wins. When a cluster is taken away, its keys
//! go to the next in their own order, and no other key moves.
//!
//! Every proxy must come to the same order, whatever its version. So the hash is written down here for good: FNV-1a of
//! 64 bits over the name of the cluster and over the key, their exclusive or, and the finaliser of MurmurHash3
//! (`fmix64`) over that. Another hash would be another way to name the clusters: safe, but hosts would contend for keys
//! until the last proxy has it.

/// A key's share in all its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyHash(u64);

/// A cluster's share in all its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClusterHash(u64);

/// How much a key wants a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Weight(u64);

impl KeyHash {
    /// Of the key that decides for a request of these keys: the first by name, which hosts claim first.
    pub(super) fn of_request<'k>(keys: impl Iterator<Item = &'k str>) -> Self {
        Self(fnv1a(keys.min().unwrap_or_default().as_bytes()))
    }
}

impl ClusterHash {
    /// Of the cluster with this name.
    pub(super) fn of(name: &str) -> Self {
        Self(fnv1a(name.as_bytes()))
    }

    /// Its weight for a key.
    pub(super) fn weight(self, key: KeyHash) -> Weight {
        Weight(fmix64(self.0 ^ key.0))
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn fmix64(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: u32 = 30_000;

    fn weight(cluster: &str, key: &str) -> u64 {
        ClusterHash::of(cluster).weight(KeyHash::of_request([key].into_iter())).0
    }

    /// The clusters in the order in which a key prefers them.
    fn order<'c>(clusters: &[&'c str], key: &str) -> Vec<&'c str> {
        let mut order = clusters.to_vec();
        order.sort_by_key(|cluster| core::cmp::Reverse(weight(cluster, key)));
        order
    }

    fn keys() -> impl Iterator<Item = String> {
        (0..KEYS).map(|number| format!("default/account:{number}"))
    }

    /// The published values of FNV-1a, fmix64 by hand in another language, and what follows from both. If this breaks,
    /// proxies of different versions send the same key to different hosts.
    #[test]
    fn the_hash_is_the_same_for_ever() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
        assert_eq!(fmix64(0), 0);
        assert_eq!(fmix64(1), 0xb456_bcfc_34c2_cb2c);
        assert_eq!(fmix64(u64::MAX), 0x64b5_720b_4b82_5f21);
        for (cluster, key, expected) in VECTORS {
            assert_eq!(weight(cluster, key), expected, "{cluster} {key}: {:#018x}", weight(cluster, key));
        }
        assert_eq!(order(&["a", "b", "c"], "default/account:42"), ORDER_OF_42);
    }

    #[test]
    fn the_first_key_by_name_decides() {
        let hash = |keys: &[&str]| KeyHash::of_request(keys.iter().copied());
        assert_eq!(hash(&["n/b", "n/a", "n/c"]), hash(&["n/a"]));
        assert_eq!(hash(&["n/a", "n/b"]), hash(&["n/b", "n/a"]));
        assert_ne!(hash(&["n/a"]), hash(&["n/b"]));
    }

    #[test]
    fn keys_are_spread_evenly() {
        let sets: [&[&str]; 3] = [
            &["turnstile_host_0", "turnstile_host_1", "turnstile_host_2"],
            &["a", "b", "c", "d", "e", "f", "g"],
            &["turnstile-eu-west-1a", "turnstile-eu-west-1b"],
        ];
        for clusters in sets {
            let mut firsts = vec![0_u32; clusters.len()];
            let mut seconds = vec![0_u32; clusters.len()];
            for key in keys() {
                let order = order(clusters, &key);
                for (place, count) in [(0, &mut firsts), (1, &mut seconds)] {
                    count[clusters.iter().position(|cluster| *cluster == order[place]).expect("one of them")] += 1;
                }
            }
            let fair = KEYS / clusters.len() as u32;
            // Five standard deviations of a fair draw are less than this.
            let is_fair = |count: &u32| count.abs_diff(fair) < fair / 10;
            assert!(firsts.iter().all(is_fair) && seconds.iter().all(is_fair), "{clusters:?}: {firsts:?}, {seconds:?}");
        }
    }

    #[test]
    fn who_goes_moves_its_own_keys_only_and_spreads_them() {
        let all = ["host-0", "host-1", "host-2", "host-3"];
        let rest = &all[1..];
        let mut moved = [0_u32; 4];
        for key in keys() {
            let (before, after) = (order(&all, &key), order(rest, &key));
            if before[0] == all[0] {
                assert_eq!(after[0], before[1]);
                moved[all.iter().position(|cluster| *cluster == after[0]).expect("one of them")] += 1;
            } else {
                assert_eq!(after[0], before[0], "{key} moved");
            }
        }
        let fair = KEYS / 12;
        assert!(moved[1..].iter().all(|count| count.abs_diff(fair) < fair / 5), "{moved:?}");
    }

    const ORDER_OF_42: [&str; 3] = ["b", "c", "a"];
    const VECTORS: [(&str, &str, u64); 4] = [
        ("turnstile_host_0", "default/account:42", 0x2dda_820f_4ad3_fb84),
        ("turnstile_host_1", "default/account:42", 0x68ec_e4b4_bc3a_8364),
        ("turnstile_host_2", "default/account:42", 0x6c19_2c11_5478_6105),
        ("a", "n/k", 0x7b8c_eeb4_b95a_b985),
    ];
}
