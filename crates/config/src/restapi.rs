//! What `restapi` says besides addresses and certificates: who may change things by where they
//! come from, and what each answer carries (as Patroni 4.1 has it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::check::word;
use crate::problem::Problem;
use crate::tree::Node;
use crate::values;

/// Longest backlog that may be asked for, as Patroni has it.
const QUEUE_MAX: i64 = 4096;

/// Addresses that have their first bits in common; one address has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    /// Reads `10.0.0.1`, `10.0.0.0/8`, `10.0.0.0/255.0.0.0` or `fd00::/8`. Bits behind the mask do
    /// not matter.
    #[must_use]
    pub fn parse(text: &str) -> Option<Network> {
        let (address, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let bits_max = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        let bits = match mask.map(str::trim) {
            None => bits_max,
            Some(mask) if address.is_ipv4() && mask.contains('.') => mask_bits(mask.parse().ok()?)?,
            Some(mask) => mask.parse().ok()?,
        };
        (bits <= bits_max).then_some(Network { address, bits })
    }

    /// Whether the address is one of them. One of IPv4 that comes over IPv6 counts as what it is.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differ = network.to_bits() ^ address.to_bits();
                differ.leading_zeros() >= self.bits
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// The length of a mask that is ones and then zeros, or of one that is the other way round.
fn mask_bits(mask: Ipv4Addr) -> Option<u32> {
    let whole = |bits: u32| bits.leading_ones() + bits.trailing_zeros() == Ipv4Addr::BITS;
    let mask = mask.to_bits();
    [mask, !mask].into_iter().find(|bits| whole(*bits)).map(u32::leading_ones)
}

/// An entry of `restapi.allowlist`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// An address or a network.
    Network(Network),
    /// A host by its name.
    Host(String),
}

impl Allowed {
    fn parse(text: &str) -> Option<Allowed> {
        let text = text.trim();
        if let Some(network) = Network::parse(text) {
            return Some(Allowed::Network(network));
        }
        let odd = |c: char| c == '/' || c.is_whitespace() || c.is_control();
        (!text.is_empty() && !text.contains(odd)).then(|| Allowed::Host(text.to_owned()))
    }
}

/// `restapi.server_tokens`: how much the header `Server` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServerTokens {
    /// What serves.
    #[default]
    Original,
    /// Product and version.
    Minimal,
    /// The product.
    ProductOnly,
}

/// The words of [`ServerTokens`].
pub(crate) const SERVER_TOKENS: &[&str] = &["original", "minimal", "productonly"];

/// What `restapi` says besides addresses, certificates and users.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestapiExtras {
    /// Who may change things, by address; empty: whoever else is let in.
    pub allowlist: Vec<Allowed>,
    /// Members of the cluster may, too.
    pub allowlist_include_members: bool,
    /// Names and values of headers that each answer carries.
    pub headers: Vec<(String, String)>,
    /// What the header `Server` says.
    pub server_tokens: ServerTokens,
    /// How many connections may wait to be taken in; `None`: as many as the system likes.
    pub backlog: Option<u32>,
}

impl RestapiExtras {
    /// Reads the section; `tls`: it is served over TLS.
    pub(crate) fn read(tree: &Node, tls: bool, errors: &mut Vec<Problem>) -> RestapiExtras {
        let members = tree.at("restapi.allowlist_include_members").and_then(values::boolean);
        let tokens = tree.at("restapi.server_tokens").and_then(|node| word(node, SERVER_TOKENS));
        let mut headers = extra_headers(tree, "restapi.http_extra_headers", errors);
        let over_tls = extra_headers(tree, "restapi.https_extra_headers", errors);
        if tls {
            headers.retain(|(name, _)| !over_tls.iter().any(|(other, _)| other == name));
            headers.extend(over_tls);
        }
        RestapiExtras {
            allowlist: allowlist(tree, errors),
            allowlist_include_members: members.unwrap_or(false),
            headers,
            server_tokens: match tokens {
                Some("minimal") => ServerTokens::Minimal,
                Some("productonly") => ServerTokens::ProductOnly,
                Some(_) | None => ServerTokens::Original,
            },
            backlog: backlog(tree, errors),
        }
    }
}

fn allowlist(tree: &Node, errors: &mut Vec<Problem>) -> Vec<Allowed> {
    const KEY: &str = "restapi.allowlist";
    let mut allowed = Vec::new();
    for text in tree.at(KEY).and_then(values::comma_list).unwrap_or_default() {
        match Allowed::parse(&text) {
            Some(entry) => allowed.push(entry),
            None => {
                let what = format!("{text:?} is no address, network (10.0.0.0/8) or host name");
                errors.push(Problem::new(tree.place_of(KEY), KEY, what));
            }
        }
    }
    allowed
}

fn extra_headers(tree: &Node, key: &str, errors: &mut Vec<Problem>) -> Vec<(String, String)> {
    let entries = tree.at(key).map(Node::entries).unwrap_or_default();
    let mut headers = Vec::new();
    for entry in entries {
        let Some(value) = values::text(&entry.node) else { continue };
        if is_token(&entry.key) && !value.contains(|c: char| c.is_control() && c != '\t') {
            headers.push((entry.key.clone(), value));
        } else {
            let what = "is no header: a name of letters, digits and dashes, a value on one line";
            errors.push(Problem::new(entry.at, format!("{key}.{}", entry.key), what));
        }
    }
    headers
}

/// A header's name (RFC 9110, 5.6.2).
fn is_token(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.bytes().all(fits)
}

fn backlog(tree: &Node, errors: &mut Vec<Problem>) -> Option<u32> {
    const KEY: &str = "restapi.request_queue_size";
    let number = tree.at(KEY).and_then(values::integer)?;
    let fitting = u32::try_from(number).ok().filter(|_| number <= QUEUE_MAX);
    if fitting.is_none() {
        let what = format!("must be 0 to {QUEUE_MAX}");
        errors.push(Problem::new(tree.place_of(KEY), KEY, what));
    }
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_has_their_first_bits() {
        for (network, address, inside) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.9.8.7/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/255.255.0.0", "10.0.9.9", true),
            ("10.0.0.0/255.255.0.0", "10.1.0.0", false),
            ("10.0.0.0/0.0.255.255", "10.0.9.9", true),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00::/8", "fdff::1", true),
            ("fd00::/8", "fe00::1", false),
            ("::/0", "fe00::1", true),
        ] {
            let parsed = Network::parse(network).expect(network);
            let address = address.parse().expect("an address");
            assert_eq!(parsed.contains(address), inside, "{network} {address}");
        }
        for bad in ["10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/255.0.255.0", "::/ffff::", ""] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    fn read(text: &str, tls: bool) -> (RestapiExtras, Vec<String>) {
        let tree = Node::from_yaml(text, 0).expect("YAML");
        let mut errors = Vec::new();
        let extras = RestapiExtras::read(&tree, tls, &mut errors);
        (extras, errors.into_iter().map(|problem| problem.key).collect())
    }

    #[test]
    fn the_section_is_read() {
        let text = "restapi:\n  allowlist: [10.0.0.0/8, db1]\n  allowlist_include_members: on\n  \
                    http_extra_headers: {X-Frame-Options: DENY, X-Number: 1}\n  \
                    https_extra_headers: {X-Frame-Options: SAMEORIGIN}\n  \
                    server_tokens: Minimal\n  request_queue_size: 5\n";
        let (extras, errors) = read(text, true);
        assert_eq!(errors, <[String; 0]>::default());
        let network = Network::parse("10.0.0.0/8").expect("valid");
        assert_eq!(extras.allowlist, [Allowed::Network(network), Allowed::Host("db1".to_owned())]);
        assert!(extras.allowlist_include_members);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(extras.headers, [pair("X-Number", "1"), pair("X-Frame-Options", "SAMEORIGIN")]);
        assert_eq!((extras.server_tokens, extras.backlog), (ServerTokens::Minimal, Some(5)));
        let (plain, _) = read(text, false);
        assert_eq!(plain.headers, [pair("X-Frame-Options", "DENY"), pair("X-Number", "1")]);
        assert_eq!(read("restapi: {}\n", false), (RestapiExtras::default(), Vec::new()));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, key) in [
            ("allowlist: [10.0.0.0/40]", "restapi.allowlist"),
            ("allowlist: ['a b']", "restapi.allowlist"),
            ("http_extra_headers: {'a b': x}", "restapi.http_extra_headers.a b"),
            ("https_extra_headers: {a: \"x\\ny\"}", "restapi.https_extra_headers.a"),
            ("request_queue_size: 5000", "restapi.request_queue_size"),
            ("request_queue_size: -1", "restapi.request_queue_size"),
        ] {
            let (_, errors) = read(&format!("restapi: {{{text}}}\n"), false);
            assert_eq!(errors, [key], "{text}");
        }
    }
}
