//! `calidris speaker` and `calidris bgp` as an operator meets them: two processes on the loopback interface.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod eventually;
mod namespaces;

use serde_json::{Value, json};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use eventually::eventually;
use namespaces::Namespace;

/// A speaker that is stopped, and whose files are removed, when the test ends.
struct Speaker {
    child: Child,
    folder: PathBuf,
}

impl Speaker {
    fn start(folder: &Path, config: &str) -> Self {
        Self::start_by(calidris(), folder, config)
    }

    /// Starts it in a namespace.
    fn start_in(namespace: &Namespace, folder: &Path, config: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace.name(), env!("CARGO_BIN_EXE_calidris")]);
        Self::start_by(command, folder, config)
    }

    fn start_by(mut command: Command, folder: &Path, config: &str) -> Self {
        let folder = folder.to_owned();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("speaker.toml"), config).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = command
            .args(["speaker", "--config"])
            .arg(folder.join("speaker.toml"))
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    fn bgp(&self, question: &[&str]) -> Output {
        let mut command = calidris();
        command
            .arg("bgp")
            .args(question)
            .arg("--socket")
            .arg(self.folder.join("control.sock"));
        command.output().unwrap()
    }

    fn json(&self, question: &[&str]) -> Option<Value> {
        let output = self.bgp(&[question, &["-o", "json"]].concat());
        serde_json::from_slice(&output.stdout).ok()
    }

    fn text(&self, question: &[&str]) -> String {
        let output = self.bgp(question);
        assert!(output.status.success(), "{question:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _reaped = self.child.wait();
        let _left = std::fs::remove_dir_all(&self.folder);
        // The folder that speakers of a test share goes with the last of them.
        let _not_empty_yet = self.folder.parent().map(std::fs::remove_dir);
    }
}

fn calidris() -> Command {
    Command::new(env!("CARGO_BIN_EXE_calidris"))
}

/// A folder and a pair of speakers in it: `left` in AS 65001, `right` in AS 65002, each at an address of its own.
fn pair(name: &str, net: u8) -> (Speaker, Speaker) {
    let folder = std::env::temp_dir().join(format!("calidris-speaker-{name}-{}", std::process::id()));
    let port = TcpListener::bind("0.0.0.0:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = |us: (&str, u8), them: (&str, u8), routes: &str| {
        format!(
            "[bgp]\nas_number = 6500{0}\nrouter_id = \"192.0.2.{0}\"\nlisten_port = {port}\nlisten_addresses = [\"127.0.{net}.{0}\"]\n{routes}\n[[bgp.peers]]\nname = \"{1}\"\naddress = \"127.0.{net}.{2}\"\nport = {port}\nas_number = 6500{2}\nlocal_address = \"127.0.{net}.{0}\"\nconnect_retry = \"1s\"\nexport = \"accept\"\nimport = [{{ prefix = \"10.0.0.0/8\", min_length = 16, action = \"accept\" }}]\n[control]\nsocket = \"{3}\"\n",
            us.1,
            them.0,
            them.1,
            folder.join(us.0).join("control.sock").display(),
        )
    };
    let route = |prefix: &str| format!("[[bgp.routes]]\nprefix = \"{prefix}\"\n");
    let lefts = ["10.1.0.0/24", "10.1.1.0/24", "10.0.0.0/12"].map(route).concat();
    let no_export = "[[bgp.routes]]\nprefix = \"10.2.9.0/24\"\ncommunities = [\"65535:65281\"]\n";
    let rights = [route("10.1.1.0/24"), route("10.2.0.0/24"), no_export.to_owned()].concat();
    (
        Speaker::start(&folder.join("left"), &config(("left", 1), ("right", 2), &lefts)),
        Speaker::start(&folder.join("right"), &config(("right", 2), ("left", 1), &rights)),
    )
}

fn established(speaker: &Speaker, peer: &str) -> Value {
    eventually("session Established with everything told", || {
        let peer = speaker.json(&["peer", peer])?;
        let family = &peer["families"][0];
        let done = family["end_of_rib_received"] == true && family["end_of_rib_sent"] == true;
        (peer["state"] == "established" && done).then_some(peer)
    })
}

#[test]
fn an_operator_sees_peers_routes_and_why() {
    let (left, right) = pair("looking", 31);
    let peer = established(&right, "left");
    assert_eq!(peer["negotiated"]["hold_time"], 90);
    assert!(peer["timers_seconds"]["hold"].as_f64().unwrap() > 0.0, "{peer}");
    assert!(peer["counters"]["updates_in"].as_u64().unwrap() > 0, "{peer}");
    assert_eq!(peer["families"][0]["received"], 3, "{peer}");
    assert_eq!(peer["families"][0]["accepted"], 2, "{peer}");

    let details = right.text(&["peer", "left"]);
    for words in [
        "Established for",
        "4-octet AS, route refresh, enhanced route refresh, extended messages",
        "ipv4-unicast  3         2",
    ] {
        assert!(details.contains(words), "{words}\n{details}");
    }
    let received = right.text(&["routes", "--in", "left"]);
    assert!(
        received.contains(">  10.1.0.0/24  127.0.31.1  left"),
        "{received}"
    );
    assert!(
        received.contains("refused: no import term accepts it"),
        "{received}"
    );
    let sent = left.json(&["routes", "--out", "right"]).unwrap();
    assert_eq!(sent.as_array().unwrap().len(), 3, "{sent}");
    assert_eq!(
        sent[0]["exports"][0]["announced"][0]["attributes"]["as_path"], "65001",
        "{sent}"
    );

    let route = right.json(&["route", "10.1.1.0/24"]).unwrap();
    assert_eq!(route["decided_by"], "weight", "{route}");
    assert_eq!(route["candidates"][0]["standing"], "best", "{route}");
    assert_eq!(route["candidates"][1]["standing"]["lost"], "weight", "{route}");
    assert_eq!(route["candidates"][1]["terms"][0], "rule-1", "{route}");
    let withheld = right.text(&["route", "10.2.9.1"]);
    assert!(withheld.contains("left: withheld: no export"), "{withheld}");

    let missing = right.bgp(&["route", "192.0.2.0/24"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("no route to exactly 192.0.2.0/24"));
    let misspelt = right.bgp(&["peer", "lfet"]);
    assert!(
        String::from_utf8_lossy(&misspelt.stderr).contains("there are: left"),
        "{misspelt:?}"
    );
}

#[test]
fn a_new_configuration_is_shown_first_and_resets_nothing() {
    let (left, right) = pair("reload", 32);
    established(&right, "left");
    let file = right.folder.join("speaker.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(right.text(&["plan"]), "nothing changes\n");
    let changed = text
        .replace("10.2.0.0/24", "10.3.0.0/24")
        .replace("min_length = 16", "min_length = 8");
    std::fs::write(&file, changed).unwrap();
    let expected = "peer left: its session stays; import policy: what was received is judged again\nroute withdrawn: 10.2.0.0/24\nroute announced: 10.3.0.0/24\n";
    assert_eq!(right.text(&["plan"]), expected);
    assert_eq!(right.text(&["plan"]), expected, "a plan changes nothing");
    let plan = right.json(&["plan"]).unwrap();
    assert_eq!(
        (&plan["applied"], &plan["announced"][0]),
        (&json!(false), &json!("10.3.0.0/24")),
        "{plan}"
    );
    let peer = &plan["bgp"]["peers"][0];
    assert_eq!(
        (&peer["session"], &peer["changes"][0]["effect"]),
        (&json!("stays"), &json!("import")),
        "{plan}"
    );
    let mut told = expected.to_owned();
    told.push_str("applied\n");
    assert_eq!(right.text(&["reload"]), told, "what will be done is told first");
    eventually("the new route at the peer", || {
        left.json(&["route", "10.3.0.0/24"])
    });
    eventually("the withdrawn route gone", || {
        left.json(&["route", "10.2.0.0/24"]).is_none().then_some(())
    });
    let peer = right.json(&["peer", "left"]).unwrap();
    assert_eq!(peer["established_count"], 1, "{peer}");
    assert_eq!(
        peer["families"][0]["accepted"], 3,
        "import runs again over what was received: {peer}"
    );

    std::fs::write(&file, text.replace("as_number = 65001", "as_number = 0")).unwrap();
    let refused = right.bgp(&["reload"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("expected an AS number from 1 to 4294967295"),
        "{refused:?}"
    );
    assert_eq!(right.json(&["peer", "left"]).unwrap()["state"], "established");
}

#[test]
fn a_password_that_is_missing_keeps_the_session_down_until_it_is_there() {
    let (left, right) = pair("secret", 34);
    established(&left, "right");
    established(&right, "left");
    let secrets: Vec<PathBuf> = [&left, &right]
        .iter()
        .map(|side| side.folder.join("secret"))
        .collect();
    for (side, secret) in [&left, &right].iter().zip(&secrets) {
        let file = side.folder.join("speaker.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let key = format!("connect_retry = \"1s\"\npassword_file = \"{}\"", secret.display());
        std::fs::write(&file, text.replace("connect_retry = \"1s\"", &key)).unwrap();
        let told = side.text(&["reload"]);
        assert!(
            told.contains("its session is RESET; whether segments are signed"),
            "{told}"
        );
        assert!(told.contains("no session for want of a password"), "{told}");
    }
    let peers = right.text(&["peers"]);
    assert!(peers.contains("no TCP-MD5 password, so no session"), "{peers}");
    assert!(peers.contains("cannot read the password"), "{peers}");
    assert_eq!(right.json(&["peer", "left"]).unwrap()["state"], "idle");
    // Nobody has to ask for it.
    for secret in &secrets {
        std::fs::write(secret, "the same on both sides\n").unwrap();
    }
    established(&right, "left");
    established(&left, "right");
}

#[test]
fn an_end_by_the_operator_is_told_to_the_peer() {
    let (left, right) = pair("farewell", 33);
    established(&right, "left");
    left.signal(rustix::process::Signal::INT);
    let error = eventually("the peer's words", || {
        let peer = right.json(&["peer", "left"])?;
        let error = &peer["last_error"];
        (error["by"] == "peer").then(|| error["text"].to_string())
    });
    assert!(error.contains("the operator has stopped this speaker"), "{error}");
}

#[test]
fn a_wrong_configuration_is_exit_status_2_and_a_missing_speaker_4() {
    let folder = std::env::temp_dir().join(format!("calidris-speaker-wrong-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("speaker.toml");
    std::fs::write(&file, "[bgp]\nas_number = 1\n").unwrap();
    let output = calidris()
        .args(["speaker", "--check", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("router_id is missing"),
        "{output:?}"
    );
    let socket = folder.join("none.sock");
    let output = calidris()
        .args(["bgp", "peers", "--socket"])
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn peers_behind_an_interface_find_each_other_by_router_advertisements() {
    if !namespaces::possible("peers_behind_an_interface_find_each_other_by_router_advertisements") {
        return;
    }
    let folder = std::env::temp_dir().join(format!("calidris-speaker-unnumbered-{}", std::process::id()));
    let ends = [Namespace::new(), Namespace::new()];
    let config = |n: usize| {
        format!(
            "[bgp]\nas_number = 6500{n}\nrouter_id = \"192.0.2.{n}\"\n[[bgp.routes]]\nprefix = \"10.{n}.0.0/24\"\n[[bgp.peers]]\nname = \"link\"\ninterface = \"up0\"\nas_number = \"external\"\nimport = \"accept\"\nexport = \"own-blocks\"\n[control]\nsocket = \"{}\"\n",
            folder.join(n.to_string()).join("control.sock").display()
        )
    };
    // The interface is not there yet: the speakers look for it.
    let speakers: Vec<Speaker> = (1..=2)
        .zip(&ends)
        .map(|(n, end)| Speaker::start_in(end, &folder.join(n.to_string()), &config(n)))
        .collect();
    let waiting = eventually("the speaker answers", || speakers[0].json(&["peer", "link"]));
    assert_eq!(
        (&waiting["state"], &waiting["remote_as"]),
        (&json!("active"), &json!(0))
    );
    ends[0].sh(&format!(
        "ip link add up0 type veth peer name up0 netns {} && ip link set up0 up",
        ends[1].name()
    ));
    ends[1].sh("ip link set up0 up");
    for (speaker, other) in speakers.iter().zip([2, 1]) {
        let route = eventually("the other's route", || {
            speaker.json(&["route", &format!("10.{other}.0.0/24")])
        });
        let next_hop = route["candidates"][0]["attributes"]["next_hop"].to_string();
        assert!(next_hop.contains("fe80::"), "{route}");
        let peer = speaker.json(&["peer", "link"]).unwrap();
        assert_eq!(peer["negotiated"]["extended_next_hop"], true, "{peer}");
        assert_eq!(peer["remote_as"], 65000 + other, "{peer}");
    }
    // The interface goes away and comes back under another number.
    ends[0].sh("ip link del up0");
    eventually("the session ends", || {
        (speakers[0].json(&["peer", "link"])?["state"] != "established").then_some(())
    });
    ends[0].sh(&format!(
        "ip link add up0 type veth peer name up0 netns {} && ip link set up0 up",
        ends[1].name()
    ));
    ends[1].sh("ip link set up0 up");
    eventually("a session again", || {
        let peer = speakers[0].json(&["peer", "link"])?;
        (peer["state"] == "established" && peer["established_count"] == 2).then_some(())
    });
}

#[test]
fn a_policy_asks_for_the_link_of_a_peer_with_an_address() {
    if !namespaces::possible("a_policy_asks_for_the_link_of_a_peer_with_an_address") {
        return;
    }
    let ends = [Namespace::new(), Namespace::new()];
    ends[0].sh(&format!(
        "ip link add up0 type veth peer name up0 netns {}",
        ends[1].name()
    ));
    let folder = std::env::temp_dir().join(ends[0].name());
    let speakers: Vec<Speaker> = [(1, 2), (2, 1)]
        .into_iter()
        .zip(&ends)
        .map(|((us, them), end)| {
            end.sh(&format!("ip link set up0 up; ip addr add 10.0.9.{us}/24 dev up0"));
            let config = format!(
                "[bgp]\nas_number = 65001\nrouter_id = \"10.0.9.{us}\"\n[[bgp.routes]]\nprefix = \"10.{us}.0.0/24\"\n[[bgp.peers]]\nname = \"other\"\naddress = \"10.0.9.{them}\"\nas_number = 65001\nconnect_retry = \"1s\"\nimport = [{{ interface = \"up*\", action = \"accept\" }}]\n[control]\nsocket = \"{}\"\n",
                folder.join(us.to_string()).join("control.sock").display()
            );
            Speaker::start_in(end, &folder.join(us.to_string()), &config)
        })
        .collect();
    let stands = |what: &str, standing: &str| {
        eventually(what, || {
            let route = speakers[0].json(&["route", "10.2.0.0/24"])?;
            let found = &route["candidates"][0];
            found["standing"]
                .to_string()
                .contains(standing)
                .then(|| found.clone())
        })
    };
    let found = stands("the route", "best");
    assert_eq!(found["attributes"]["interface"], "up0", "{found:#}");
    // A longer subnet counts, and what comes later is followed.
    ends[0].sh("ip link add aux0 type bridge; ip addr add 10.0.9.3/31 dev aux0 noprefixroute");
    stands("the route is refused", "refused");
    ends[0].sh("ip link del aux0");
    stands("the route is back", "best");
    assert_eq!(
        speakers[0].json(&["peer", "other"]).unwrap()["established_count"],
        1
    );
}

/// What `birdc show protocols all`, `birdc show route all`, `vtysh -c "show bgp neighbors json"` and `"show bgp ipv4 json detail"` tell, and
/// where it is here.
const OF_A_PEER: [(&str, &str); 46] = [
    ("name", "/name"),
    ("neighbour address", "/address"),
    ("neighbour AS", "/remote_as"),
    ("local AS", "/local_as"),
    ("internal or external", "/kind"),
    ("state", "/state"),
    ("since", "/since_seconds"),
    ("connections established", "/established_count"),
    ("source address and ports", "/transport/0"),
    ("foreign address and port", "/transport/1"),
    ("passive", "/connection/passive"),
    ("authentication", "/connection/md5"),
    ("configured hold time", "/connection/hold_time"),
    ("neighbour ID", "/negotiated/router_id"),
    ("hold time", "/negotiated/hold_time"),
    ("keepalive interval", "/negotiated/keepalive"),
    ("hold timer", "/timers_seconds/hold"),
    ("keepalive timer", "/timers_seconds/keepalive"),
    ("channels", "/negotiated/families/0"),
    ("local capabilities", "/negotiated/capabilities_sent/0"),
    ("neighbour capabilities", "/negotiated/capabilities_received/0"),
    ("external AS4", "/negotiated/four_octet_as"),
    ("route refresh", "/negotiated/route_refresh"),
    ("enhanced refresh", "/negotiated/enhanced_route_refresh"),
    ("long messages", "/negotiated/extended_message"),
    ("restart time", "/negotiated/graceful_restart"),
    ("input filter", "/import"),
    ("output filter", "/export"),
    ("opens", "/counters/opens_in"),
    ("notifications", "/counters/notifications_out"),
    ("updates", "/counters/updates_in"),
    ("keepalives", "/counters/keepalives_out"),
    ("route refreshes", "/counters/route_refreshes_in"),
    ("all messages and octets", "/counters/bytes_out"),
    ("routes imported", "/families/0/accepted"),
    ("import updates filtered", "/families/0/filtered"),
    ("import updates rejected", "/families/0/rejected"),
    ("routes with an unresolved next hop", "/families/0/unreachable"),
    ("routes preferred", "/families/0/best"),
    ("routes exported", "/families/0/announced"),
    ("export updates filtered", "/families/0/withheld"),
    ("BGP next hop", "/families/0/own_next_hop"),
    ("prefixes beyond the limit", "/families/0/beyond_limit"),
    ("import updates and withdraws", "/families/0/announcements_in"),
    ("export updates and withdraws", "/families/0/announcements_out"),
    ("update group", "/families/0/update_group_size"),
];

const OF_A_ROUTE: [(&str, &str); 20] = [
    ("network", "/prefix"),
    ("from", "/candidates/0/from"),
    ("type", "/candidates/0/source"),
    ("via", "/candidates/0/via/0/address"),
    ("best", "/candidates/0/standing"),
    ("selection reason", "/decided_by"),
    ("last update", "/candidates/0/age_seconds"),
    ("weight", "/candidates/0/weight"),
    ("peer's router ID", "/candidates/0/peer_router_id"),
    ("origin", "/candidates/0/attributes/origin"),
    ("AS path", "/candidates/0/attributes/as_path"),
    ("next hop", "/candidates/0/attributes/next_hop"),
    ("communities of all sizes", "/candidates/0/attributes/communities"),
    ("atomic aggregate", "/candidates/0/attributes/atomic_aggregate"),
    ("cluster list", "/candidates/0/attributes/cluster_list"),
    ("stale", "/candidates/0/stale"),
    ("unknown attributes", "/candidates/0/attributes/unknown"),
    ("filtered by", "/candidates/0/terms"),
    ("advertised to", "/announced_to"),
    ("what each is told", "/exports/0/to"),
];

#[test]
fn what_other_daemons_tell_one_can_learn_here() {
    let (left, _right) = pair("learn", 9);
    let peer = established(&left, "right");
    for (what, place) in OF_A_PEER {
        let found = peer.pointer(place).filter(|found| !found.is_null());
        assert!(found.is_some(), "{what}: no {place} in {peer:#}");
    }
    let route = left.json(&["route", "10.2.0.0/24"]).unwrap();
    for (what, place) in OF_A_ROUTE {
        let found = route.pointer(place).filter(|found| !found.is_null());
        assert!(found.is_some(), "{what}: no {place} in {route:#}");
    }
    let text = left.text(&["peer", "right"]);
    for expected in [
        "import",
        "by 1 term, else nothing",
        "everything",
        "UPDATE",
        "KEEPALIVE",
        "hold in",
        "GROUP OF",
        "FILTERED/REJECTED",
        "WITHHELD",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// Two speakers with a router between them, each at an address of its own behind its link.
#[test]
fn a_peer_behind_a_router_needs_multihop_and_hears_from_the_source_address() {
    if !namespaces::possible("a_peer_behind_a_router") {
        return;
    }
    let (near, between, far) = (Namespace::new(), Namespace::new(), Namespace::new());
    for (number, end) in [(1, &near), (2, &far)] {
        between.sh(&format!(
            "ip link add r{number} type veth peer name up0 netns {0}; ip link set r{number} up; ip addr add 10.0.{number}.254/24 dev r{number}; ip route add 10.255.0.{number}/32 via 10.0.{number}.{number}",
            end.name()
        ));
        end.sh(&format!(
            "ip link set up0 up; ip addr add 10.0.{number}.{number}/24 dev up0; ip addr add 10.255.0.{number}/32 dev lo; ip route add default via 10.0.{number}.254"
        ));
    }
    between.sh("sysctl -q net.ipv4.ip_forward=1");
    let folder = std::env::temp_dir().join(near.name());
    let config = |us: u8, them: u8, keys: &str| {
        format!(
            "[bgp]\nas_number = 6500{us}\nrouter_id = \"10.255.0.{us}\"\n[[bgp.peers]]\nname = \"other\"\naddress = \"10.255.0.{them}\"\nlocal_address = \"10.255.0.{us}\"\nas_number = 6500{them}\nconnect_retry = \"1s\"\n{keys}\n[control]\nsocket = \"{}\"\n",
            folder.join(us.to_string()).join("control.sock").display()
        )
    };
    let left = Speaker::start_in(&near, &folder.join("1"), &config(1, 2, ""));
    let _right = Speaker::start_in(
        &far,
        &folder.join("2"),
        &config(2, 1, "multihop = 2\npassive = true"),
    );
    let refused = eventually("an attempt that ends at the router", || {
        let peer = left.json(&["peer", "other"])?;
        Some(peer["last_error"]["text"].as_str()?.to_owned())
    });
    assert!(!refused.is_empty());
    let peer = left.json(&["peer", "other"]).unwrap();
    assert_eq!(peer["established_count"], 0, "{peer:#}");
    std::fs::write(folder.join("1/speaker.toml"), config(1, 2, "multihop = 2")).unwrap();
    left.text(&["reload"]);
    let peer = eventually("the session", || {
        left.json(&["peer", "other"])
            .filter(|peer| peer["state"] == "established")
    });
    let ours = peer["transport"][0].as_str().unwrap();
    assert!(ours.starts_with("10.255.0.1:"), "{peer:#}");
    assert_eq!(peer["connection"]["multihop"], 2);
    drop(left);
    let _left_behind = std::fs::remove_dir_all(&folder);
}
