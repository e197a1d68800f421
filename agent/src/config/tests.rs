//! Facts about the configuration file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use super::*;
use crate::model::detection::Method;

const EXAMPLE: &str = include_str!("../../../deploy/calidris.toml");
const SPEAKER_EXAMPLE: &str = include_str!("../../../deploy/calidris-speaker.toml");
const KUBERNETES_EXAMPLE: &str = include_str!("../../../deploy/kubernetes/config.yaml");
const MINIMAL: &str = "node_name = \"n1\"\n[datastore]\nendpoints = [\"http://127.0.0.1:2379\"]\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("c.toml")).map_err(|error| error.to_string())
}

#[test]
fn the_example_parses_and_its_commented_keys_too() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.node_name.as_str(), "node1");
    let bgp = config.bgp.as_ref().unwrap();
    assert_eq!(bgp.peers.len(), 2);
    assert!(matches!(&bgp.peers[1].import, Some(RoutePolicy::Rules(rules)) if rules.len() == 2));
    let without_alternative = uncommented(EXAMPLE).replace("multihop = 4\n", "");
    let full = parse(&without_alternative).unwrap();
    assert!(full.datastore.tls.is_some() && full.datastore.auth.is_some());
    assert_eq!(full.bgp.unwrap().peers[0].ttl_security, Some(1));
}

#[test]
fn the_examples_for_kubernetes_parse() {
    // A ConfigMap: `NODE.toml: |`, then the file, indented.
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let mut node = None;
    for line in KUBERNETES_EXAMPLE.lines() {
        if let (Some(name), Some(text)) = (node, line.strip_prefix("    ")) {
            *files.entry(name).or_default() += &format!("{text}\n");
        } else {
            node = line.trim_start().strip_suffix(".toml: |");
        }
    }
    assert_eq!(files.keys().copied().collect::<Vec<_>>(), ["node1", "node2"]);
    for (node, text) in files {
        let config = parse(&text).unwrap();
        assert_eq!(config.node_name.as_str(), node);
        assert_eq!(config.node.ipv4_detection, Some(Method::KubernetesInternalIp));
        assert!(config.cni.conflist.is_some() && config.ipam.pools.len() == 1);
    }
}

#[test]
fn a_datastore_may_be_named_by_its_kind_alone() {
    let embedded = parse("node_name = \"n1\"\ndatastore = \"embedded\"\n")
        .unwrap()
        .datastore;
    assert_eq!(embedded.kind, DatastoreKind::Embedded);
    assert_eq!(embedded.path, Path::new("/var/lib/calidris/datastore.redb"));
    let nothing = parse("node_name = \"n1\"\n").unwrap().datastore;
    assert_eq!(nothing, Datastore::default());
}

#[test]
fn the_example_shows_the_defaults() {
    let (example, minimal) = (parse(EXAMPLE).unwrap(), parse(MINIMAL).unwrap());
    assert_eq!(example.cni, minimal.cni);
    assert_eq!(example.peering, minimal.peering);
    assert_eq!(example.ipam, minimal.ipam);
    assert_eq!(example.dataplane, minimal.dataplane);
    assert_eq!(example.status, minimal.status);
    assert_eq!(example.control, minimal.control);
    assert_eq!(example.log, minimal.log);
    assert_eq!(
        example.datastore.request_timeout,
        minimal.datastore.request_timeout
    );
    let bgp = parse(&format!(
        "{MINIMAL}[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"\n[[bgp.peers]]\nname = \"tor-a\"\naddress = \"192.0.2.1\"\nas_number = 65001\n"
    ));
    let (mut shown, bgp) = (example.bgp.unwrap(), bgp.unwrap().bgp.unwrap());
    (shown.peers[0].import, shown.peers[0].export) = (None, None);
    assert_eq!(shown.peers[0], bgp.peers[0]);
    shown.peers.clear();
    assert_eq!(
        shown,
        Bgp {
            peers: Vec::new(),
            ..bgp
        }
    );
}

#[test]
fn every_key_is_in_the_example() {
    let text = uncommented(EXAMPLE);
    for keys in [
        keys_of::<Config>(),
        keys_of::<Datastore>(),
        keys_of::<Tls>(),
        keys_of::<Auth>(),
        keys_of::<NodeAddresses>(),
        keys_of::<Bgp>(),
        keys_of::<StaticRoute>(),
        keys_of::<peer::PeerKeys>(),
        keys_of::<policy::RuleKeys>(),
        keys_of::<PeeringConfig>(),
        keys_of::<Cni>(),
        keys_of::<IpamSettings>(),
        keys_of::<PoolSettings>(),
        keys_of::<DataplaneConfig>(),
        keys_of::<Metrics>(),
        keys_of::<Status>(),
        keys_of::<Control>(),
        keys_of::<Log>(),
    ] {
        assert_documented("deploy/calidris.toml", &text, keys);
    }
}

#[test]
fn every_key_of_a_speaker_is_in_its_example() {
    let text = uncommented(SPEAKER_EXAMPLE);
    for keys in [
        keys_of::<SpeakerFile>(),
        keys_of::<Bgp>(),
        keys_of::<StaticRoute>(),
        keys_of::<peer::PeerKeys>(),
        keys_of::<policy::RuleKeys>(),
        keys_of::<Control>(),
        keys_of::<Log>(),
    ] {
        assert_documented("deploy/calidris-speaker.toml", &text, keys);
    }
}

#[test]
fn the_speakers_example_parses_and_shows_the_defaults() {
    let parse = |text: &str| SpeakerFile::parse(text, Path::new("s.toml"));
    let mut example = parse(SPEAKER_EXAMPLE).unwrap();
    example.speaker().check().unwrap();
    assert_eq!(example.bgp.originations().len(), 1);
    let without_alternative = uncommented(SPEAKER_EXAMPLE).replace("multihop = 4\n", "");
    parse(&without_alternative).unwrap();
    let minimal = "[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.10\"\n[[bgp.peers]]\nname = \"node1\"\naddress = \"192.0.2.11\"\nas_number = 64512\nroute_reflector_client = true\n";
    let minimal = parse(minimal).unwrap();
    assert_eq!(example.bgp.peers[0], minimal.bgp.peers[0]);
    example.bgp.peers.truncate(1);
    example.bgp.routes.clear();
    assert_eq!(example, minimal);
}

#[test]
fn a_speaker_needs_a_router_id() {
    let error = SpeakerFile::parse("[bgp]\nas_number = 1\n", Path::new("s.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "s.toml:1:1: router_id is missing; expected an IPv4 address, unique within the AS"
    );
}

#[test]
fn templates_add_what_a_peer_does_not_say() {
    let text = format!(
        "{MINIMAL}[bgp]\nas_number = 64512\nrouter_id = \"192.0.2.11\"
[[bgp.templates]]\nname = \"base\"\nhold_time = \"9s\"\npassive = true\nimport = \"accept\"
[[bgp.templates]]\nname = \"rack\"\ntemplate = \"base\"\nhold_time = \"30s\"\nas_number = \"external\"
[[bgp.peers]]\nname = \"a\"\naddress = \"192.0.2.1\"\ntemplate = \"rack\"\npassive = false
[[bgp.peers]]\nname = \"b\"\ninterface = \"eth1\"\ntemplate = \"base\"\nas_number = \"internal\"
[[bgp.dynamic]]\nname = \"c\"\nrange = \"10.0.0.0/8\"\ntemplate = \"rack\"\nas_number = [65000, \"65100-65199\"]\n"
    );
    let config = parse(&text).unwrap();
    let bgp = config.bgp.as_ref().unwrap();
    let facts = |peer: &Peer| (peer.hold_time.as_secs(), peer.passive, peer.import.clone());
    let accept = Some(RoutePolicy::Accept);
    assert_eq!(facts(&bgp.peers[0]), (30, false, accept.clone()));
    assert_eq!(bgp.peers[0].as_number, Some(AsNumbers::External));
    assert_eq!(facts(&bgp.peers[1]), (9, true, accept.clone()));
    assert_eq!(facts(&bgp.dynamic[0].peer), (30, true, accept));
    assert_eq!(
        bgp.dynamic[0].peer.as_number,
        Some(AsNumbers::Within(vec![65000..=65000, 65100..=65199]))
    );
    let speaker = bgp.speaker(config.router_id().unwrap());
    speaker.check().unwrap();
    assert_eq!(
        (speaker.peers[1].remote_as, speaker.peers[1].extended_next_hop),
        (64512, true)
    );
    assert_eq!(speaker.dynamic[0].max_peers, 100);
}

#[test]
fn a_password_that_cannot_be_had_is_told_and_never_empty() {
    let folder = std::env::temp_dir().join(format!("calidris-secret-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let empty = folder.join("empty");
    std::fs::write(&empty, "\n").unwrap();
    for (key, expected) in [
        (
            "password_file = \"/nonexistent/secret\"".to_owned(),
            "cannot read the password",
        ),
        (
            format!("password_file = \"{}\"", empty.display()),
            "the first line is empty",
        ),
        (
            "password_env = \"CALIDRIS_NO_SUCH_VARIABLE\"".to_owned(),
            "is not set",
        ),
    ] {
        let text = format!(
            "{MINIMAL}[bgp]\nas_number = 1\nrouter_id = \"1.1.1.1\"\n[[bgp.peers]]\nname = \"a\"\naddress = \"192.0.2.1\"\nas_number = 2\n{key}\n"
        );
        let bgp = parse(&text).unwrap().bgp.unwrap();
        let transport = &bgp.speaker([1, 1, 1, 1].into()).peers[0].transport;
        assert_eq!(transport.md5_password, None);
        let why = transport.missing_secret.clone().expect(expected);
        assert!(why.contains(expected), "{why}");
        assert_eq!(bgp.missing_secrets(), [format!("peer \"a\": {why}")]);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

fn assert_documented(file: &str, text: &str, keys: BTreeSet<&'static str>) {
    assert!(!keys.is_empty());
    for key in keys {
        let documented = text.lines().any(|line| {
            line.starts_with(&format!("{key} = "))
                || line.contains(&format!(" {key} = "))
                || line.trim_matches(['[', ']']).rsplit('.').next() == Some(key)
        });
        assert!(documented, "{key} is missing in {file}");
    }
}

#[test]
fn errors_name_file_line_and_what_was_expected() {
    let with = |text: &str| format!("{MINIMAL}{text}");
    let peer = |text: &str| {
        format!(
            "{MINIMAL}[bgp]\nas_number = 1\nrouter_id = \"1.1.1.1\"\n[[bgp.peers]]\nname = \"a\"\naddress = \"192.0.2.1\"\nas_number = 2\n{text}"
        )
    };
    let rows = [
        (
            with("[cni]\nsokcet = \"/x\"\n"),
            "c.toml:5:1:",
            "unknown field `sokcet`, expected one of `socket`",
        ),
        (with("nonsense = 1\n"), "c.toml:4:1:", "unknown field `nonsense`"),
        (
            "datastore = \"file\"\n".to_owned(),
            "c.toml:1:13:",
            "expected `etcd` or `embedded`",
        ),
        (
            "[datastore]\nkind = \"embedded\"\nendpoints = [\"http://127.0.0.1:2379\"]\n".to_owned(),
            "c.toml:1:1:",
            "datastore.endpoints is etcd's",
        ),
        (
            "node_name = \"A_b\"\n".to_owned(),
            "c.toml:1:13:",
            "lower-case letters",
        ),
        (
            "[datastore]\nendpoints = []\n".to_owned(),
            "c.toml:2:13:",
            "at least one URL",
        ),
        (
            "[datastore]\nendpoints = [\"127.0.0.1\"]\n".to_owned(),
            "c.toml:2:13:",
            "expected a URL",
        ),
        (
            "[datastore]\nkind = \"zk\"\n".to_owned(),
            "c.toml:2:8:",
            "expected `etcd` or `embedded`",
        ),
        (
            with("request_timeout = 3\n"),
            "c.toml:4:19:",
            "duration with a unit",
        ),
        (
            with("request_timeout = \"3 weeks\"\n"),
            "c.toml:4:19:",
            "duration with a unit",
        ),
        (
            with("[cni]\nsocket = \"run/x\"\n"),
            "c.toml:5:10:",
            "absolute path",
        ),
        (
            with("[cni]\nmtu = 100\n"),
            "c.toml:5:7:",
            "expected 1280 to 65535",
        ),
        (
            with("[log]\nlevel = \"a=b=c\"\n"),
            "c.toml:5:9:",
            "not a log filter",
        ),
        (
            with("[node]\nipv4_address = \"10.0.0.300\"\n"),
            "c.toml:5:16:",
            "invalid",
        ),
        (with("[bgp]\nas_number = 0\n"), "c.toml:4:1:", "as_number is 0"),
        (
            with("[bgp]\nas_number = 1\n"),
            "c.toml",
            "bgp.router_id is missing",
        ),
        (
            with("[peering]\nfrom_datastore = true\n"),
            "c.toml",
            "expected a section [bgp]",
        ),
        (peer("hold_time = \"2s\"\n"), "c.toml:7:1:", "from 3s to 65535s"),
        (
            peer("local_address = \"::1\"\n"),
            "c.toml:7:1:",
            "different IP versions",
        ),
        (
            peer("multihop = 2\nttl_security = 1\n"),
            "c.toml:7:1:",
            "exclude each other",
        ),
        (peer("import = \"own-blocks\"\n"), "c.toml:7:1:", "has no meaning"),
        (peer("export = \"everything\"\n"), "c.toml:11:10:", "own-blocks"),
        (
            peer("import = [{ prefix = \"10.0.0.1/8\", action = \"accept\" }]\n"),
            "c.toml:11:22:",
            "expected 10.0.0.0/8",
        ),
        (
            peer("[[bgp.peers.import]]\naction = \"accept\"\ncomunities = \"1:1\"\n"),
            "c.toml:13:1:",
            "unknown field `comunities`, expected one of",
        ),
        (
            peer("[[bgp.peers.import]]\naction = \"accept\"\ncommunities = [\"1:1\", \"1\"]\n"),
            "c.toml:13:",
            "expected NUMBER:NUMBER",
        ),
        (
            peer("[[bgp.peers.import]]\naction = \"accept\"\nsource = \"kernel\"\n"),
            "c.toml:13:10:",
            "expected one of `originated`, `ebgp`, `ibgp`",
        ),
        (
            peer("[[bgp.peers.import]]\naction = \"accept\"\nnext_hop = []\n"),
            "c.toml:13:12:",
            "expected at least one",
        ),
        (
            peer("import = [{ max_length = 24, action = \"accept\" }]\n"),
            "c.toml:11:",
            "prefix or not_prefix",
        ),
        (
            peer("import = [{ action = \"reject\", set_med = 1 }]\n"),
            "c.toml:11:",
            "changes nothing",
        ),
        (
            peer("import = [{ action = \"drop\" }]\n"),
            "c.toml:11:22:",
            "expected one of `accept`, `reject`, `next`",
        ),
        (
            peer("import = [{ prefix = \"10.0.0.0/8\", max_length = 4, action = \"accept\" }]\n"),
            "c.toml:11:10:",
            "matches nothing",
        ),
        (
            peer("template = \"nowhere\"\n"),
            "c.toml:4:1:",
            "there is no template \"nowhere\"",
        ),
        (
            peer("[[bgp.templates]]\nname = \"t\"\nhold_tiem = \"9s\"\n"),
            "c.toml:13:1:",
            "unknown field `hold_tiem`",
        ),
        (
            peer("[[bgp.templates]]\nname = \"t\"\naddress = \"192.0.2.3\"\n"),
            "c.toml:4:1:",
            "no matter of a template",
        ),
        (
            peer("[[bgp.dynamic]]\nname = \"r\"\nas_number = 1\n"),
            "c.toml:4:1:",
            "range is missing",
        ),
        (
            peer("[[bgp.dynamic]]\nname = \"r\"\nrange = \"10.0.0.1/8\"\nas_number = 1\n"),
            "c.toml:4:1:",
            "expected 10.0.0.0/8",
        ),
        (
            peer("interface = \"eth0\"\n"),
            "c.toml:4:1:",
            "either address or interface",
        ),
        (
            peer("password_file = \"/x\"\npassword_env = \"X\"\n"),
            "c.toml:7:1:",
            "exclude each other",
        ),
        (
            peer("[[bgp.peers]]\nname = \"b\"\naddress = \"192.0.2.2\"\nas_number = \"extern\"\n"),
            "c.toml:14:13:",
            "\"internal\", \"external\"",
        ),
        (
            peer("[[bgp.peers]]\nname = \"b\"\naddress = \"192.0.2.2\"\nas_number = [\"9-1\"]\n"),
            "c.toml:14:",
            "not an AS number or a range",
        ),
        (
            peer("[[bgp.peers]]\nname = \"a\"\naddress = \"192.0.2.2\"\nas_number = 2\n"),
            "c.toml:4:1:",
            "two peers are named \"a\"",
        ),
        ("node_name = \n".to_owned(), "c.toml:1:13:", ""),
    ];
    for (text, position, expected) in rows {
        let error = parse(&text).expect_err(&text);
        assert!(error.starts_with(position), "{text}\n{error}, not at {position}");
        assert!(error.contains(expected), "{text}\n{error}, not {expected}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Path::new("/nonexistent/c.toml"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/nonexistent/c.toml: cannot read the configuration"),
        "{error}"
    );
}

#[test]
fn the_router_id_defaults_to_the_nodes_address() {
    let config = parse(&format!(
        "{MINIMAL}[node]\nipv4_address = \"192.0.2.9/24\"\n[bgp]\nas_number = 1\n"
    ))
    .unwrap();
    assert_eq!(config.router_id(), Some("192.0.2.9".parse().unwrap()));
}

/// The example with every commented-out key in force.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| line.starts_with('#') && line.chars().nth(1).is_some_and(|next| next != ' ');
    text.lines()
        .map(|line| if is_key(line) { &line[1..] } else { line })
        .collect::<Vec<_>>()
        .join("\n")
        + "\n"
}

/// The keys a struct's `Deserialize` asks for.
fn keys_of<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
    let mut keys = BTreeSet::new();
    let _stopped = T::deserialize(KeyRecorder(&mut keys));
    keys
}

struct KeyRecorder<'a>(&'a mut BTreeSet<&'static str>);

impl<'de> Deserializer<'de> for KeyRecorder<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("only structs have keys"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.extend(fields);
        Err(Self::Error::custom("the keys are known now"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
