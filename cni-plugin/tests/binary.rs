//! The built plugin, run as a runtime runs it. The agent's side is the contract library on a real socket; namespaces
//! are real ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod runtime;

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use calidris_cni::contract::{CONTRACT_VERSION, Operation, Reply};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::result::{AddResult, Interface, IpConfig, Route};
use calidris_cni::version::CniVersion;
use runtime::{Agent, Namespace, Plugin, Scratch, config};
use serde_json::{Value, json};

/// What the agent of these tests makes.
fn attachment_result() -> AddResult {
    AddResult {
        interfaces: vec![
            Interface {
                name: "cali0123456789a".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
                ..Interface::default()
            },
            Interface {
                name: "eth0".into(),
                mac: "0a:00:00:00:00:01".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/pod".into(),
                ..Interface::default()
            },
        ],
        ips: vec![
            IpConfig {
                address: "10.0.0.5/32".parse().unwrap(),
                gateway: None,
                interface: Some(1),
            },
            IpConfig {
                address: "fd00::5/128".parse().unwrap(),
                gateway: None,
                interface: Some(1),
            },
        ],
        routes: vec![Route {
            dst: "0.0.0.0/0".parse().unwrap(),
            gw: Some("169.254.1.1".parse().unwrap()),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: Some(0),
        }],
        dns: Default::default(),
    }
}

#[test]
fn a_broken_environment_is_code_4_and_the_message_names_the_variable() {
    let scratch = Scratch::new();
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("CNI_COMMAND", "")], "CNI_COMMAND"),
        (&[("CNI_COMMAND", "add")], "CNI_COMMAND"),
        (&[("CNI_COMMAND", "UPDATE")], "CNI_COMMAND"),
        (&[("CNI_CONTAINERID", "")], "CNI_CONTAINERID"),
        (&[("CNI_CONTAINERID", "_leading")], "CNI_CONTAINERID"),
        (&[("CNI_CONTAINERID", "a/b")], "CNI_CONTAINERID"),
        (&[("CNI_CONTAINERID", "ü")], "CNI_CONTAINERID"),
        (&[("CNI_IFNAME", "")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", ".")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", "..")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", "sixteen-letters-")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", "a/b")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", "a:b")], "CNI_IFNAME"),
        (&[("CNI_IFNAME", "a b")], "CNI_IFNAME"),
        (&[("CNI_NETNS", "")], "CNI_NETNS"),
        (&[("CNI_COMMAND", "CHECK"), ("CNI_NETNS", "")], "CNI_NETNS"),
        (
            &[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "")],
            "CNI_CONTAINERID",
        ),
        (&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "")], "CNI_IFNAME"),
        (&[("CNI_COMMAND", "GC"), ("CNI_PATH", "")], "CNI_PATH"),
        (&[("CNI_ARGS", "FOO=BAR")], "CNI_ARGS"),
        (&[("CNI_ARGS", "IgnoreUnknown")], "CNI_ARGS"),
        (&[("CNI_ARGS", "IgnoreUnknown=perhaps")], "CNI_ARGS"),
    ];
    for (variables, name) in cases {
        let error = Plugin::add("/nowhere")
            .env(variables)
            .run(&config("1.0.0", &scratch))
            .failure();
        assert_eq!(error["code"], 4, "{variables:?}: {error}");
        assert!(
            error["msg"].as_str().unwrap().contains(name),
            "{variables:?}: {error}"
        );
    }
    let all = Plugin::add("")
        .env(&[("CNI_CONTAINERID", ""), ("CNI_IFNAME", "")])
        .run(&config("1.0.0", &scratch));
    let message = all.failure()["msg"].as_str().unwrap().to_owned();
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        assert!(
            message.contains(name),
            "all missing variables in one message: {message}"
        );
    }
}

#[test]
fn a_broken_configuration_gets_the_code_of_the_specification() {
    let scratch = Scratch::new();
    let with = |key: &str, value: Value| {
        let mut config = config("1.1.0", &scratch);
        config[key] = value;
        config.to_string()
    };
    let without = |key: &str| {
        let mut config = config("1.1.0", &scratch);
        config.as_object_mut().unwrap().remove(key);
        config.to_string()
    };
    let cases: Vec<(String, u64, &str)> = vec![
        (String::new(), 6, "stdin"),
        ("{".into(), 6, "stdin"),
        ("[]".into(), 6, "stdin"),
        ("\u{0}".into(), 6, "stdin"),
        ("[".repeat(100_000), 6, "stdin"),
        (" ".repeat((1 << 20) + 1), 6, "limit"),
        (with("cniVersion", json!("one")), 6, "cniVersion"),
        (with("cniVersion", json!("1.0")), 6, "cniVersion"),
        (with("cniVersion", json!("01.0.0")), 6, "cniVersion"),
        (with("cniVersion", json!(1)), 6, "cniVersion"),
        (without("cniVersion"), 1, "cniVersion"),
        (with("cniVersion", json!("0.2.0")), 1, "0.2.0"),
        (with("cniVersion", json!("1.2.0")), 1, "1.2.0"),
        (with("cniVersion", json!("99.0.0")), 1, "99.0.0"),
        (without("name"), 7, "name"),
        (with("name", json!("")), 7, "name"),
        (with("name", json!("a/b")), 7, "name"),
        (with("name", json!(5)), 7, "name"),
        (without("type"), 7, "type"),
        (with("type", json!("../evil")), 7, "type"),
        (with("socket", json!("relative.sock")), 7, "socket"),
        (
            with("socket", json!(format!("/{}", "x".repeat(107)))),
            7,
            "socket",
        ),
        (with("socket", json!(3)), 7, "socket"),
        (with("timeout_seconds", json!(0)), 7, "timeout_seconds"),
        (with("timeout_seconds", json!(601)), 7, "timeout_seconds"),
        (with("timeout_seconds", json!("30")), 7, "timeout_seconds"),
        (with("timeout_seconds", json!(-1)), 7, "timeout_seconds"),
        (with("log", json!("syslog")), 7, "log"),
        (with("dns", json!([])), 7, "dns"),
        (with("args", json!("x")), 7, "args"),
        (
            with("runtimeConfig", json!({"ips": ["10.0.0.300"]})),
            7,
            "runtimeConfig",
        ),
        (
            with("runtimeConfig", json!({"portMappings": [{"hostPort": 70000}]})),
            7,
            "runtimeConfig",
        ),
        (
            with("prevResult", json!({"cniVersion": "1.1.0", "ips": 3})),
            7,
            "prevResult",
        ),
        (
            with("prevResult", json!({"cniVersion": "0.2.0"})),
            7,
            "prevResult",
        ),
        (
            with(
                "prevResult",
                json!({"ips": [{"address": "10.0.0.1/24", "interface": 0}]}),
            ),
            7,
            "prevResult",
        ),
    ];
    for (stdin, code, names) in cases {
        let error = Plugin::add("/nowhere").run_raw(stdin.as_bytes()).failure();
        let shown: String = stdin.chars().take(80).collect();
        assert_eq!(error["code"], code, "{shown}: {error}");
        assert!(error["msg"].as_str().unwrap().contains(names), "{shown}: {error}");
    }
}

#[test]
fn an_operation_older_than_its_version_is_code_1() {
    let scratch = Scratch::new();
    for (command, version, refused) in [
        ("CHECK", "0.3.1", true),
        ("CHECK", "0.4.0", false),
        ("STATUS", "1.0.0", true),
        ("STATUS", "1.1.0", false),
        ("GC", "1.0.0", true),
        ("GC", "1.1.0", false),
    ] {
        let error = Plugin::add("/nowhere")
            .env(&[("CNI_COMMAND", command)])
            .run(&config(version, &scratch))
            .failure();
        assert_eq!(error["code"] == 1, refused, "{command} in {version}: {error}");
        assert_eq!(
            error["cniVersion"], version,
            "the error is told in the caller's version"
        );
    }
}

#[test]
fn version_echoes_the_callers_version_and_needs_no_agent() {
    for (stdin, echoed) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"7.0.0"}"#, "7.0.0"),
        (r#"{"name":"x"}"#, "1.1.0"),
        ("", "1.1.0"),
        ("\n", "1.1.0"),
    ] {
        let reply = Plugin::command("VERSION")
            .run_raw(stdin.as_bytes())
            .success()
            .unwrap();
        assert_eq!(reply["cniVersion"], echoed, "{stdin:?}");
        assert_eq!(
            reply["supportedVersions"],
            json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
    for stdin in ["{", r#"{"cniVersion":"x"}"#, r#"{"cniVersion":7}"#] {
        assert_eq!(
            Plugin::command("VERSION").run_raw(stdin.as_bytes()).failure()["code"],
            6,
            "{stdin}"
        );
    }
}

#[test]
fn add_answers_in_the_version_it_was_asked_in() {
    let Some(pod) = Namespace::new() else { return };
    for version in CniVersion::ALL {
        let agent = Agent::answering(vec![Reply::Added {
            result: attachment_result(),
        }]);
        let result = Plugin::add(&pod.path())
            .run(&config(version.as_str(), &agent.scratch))
            .success()
            .unwrap();
        assert_eq!(result["cniVersion"], version.as_str());
        assert_eq!(result["ips"][0]["address"], "10.0.0.5/32");
        assert_eq!(result["ips"][1]["interface"], 1);
        let old = version < CniVersion::V1_0_0;
        assert_eq!(
            result["ips"][0].get("version"),
            old.then(|| json!("4")).as_ref(),
            "{version}: {result}"
        );
        assert_eq!(
            result["ips"][1].get("version"),
            old.then(|| json!("6")).as_ref(),
            "{version}: {result}"
        );
        let newest = version == CniVersion::V1_1_0;
        assert_eq!(
            result["interfaces"][1].get("mtu").is_some(),
            newest,
            "{version}: {result}"
        );
        assert_eq!(
            result["routes"][0].get("scope").is_some(),
            newest,
            "{version}: {result}"
        );
        assert_eq!(result["routes"][0]["gw"], "169.254.1.1");
        assert!(result["dns"].is_object());
    }
}

#[test]
fn the_namespace_itself_arrives_at_the_agent() {
    let Some(pod) = Namespace::new() else { return };
    let agent = Agent::answering(vec![
        Reply::Added {
            result: attachment_result(),
        },
        Reply::Done,
    ]);
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u;X=Y";
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let variables = [("CNI_ARGS", args), ("TRACEPARENT", trace)];
    Plugin::add(&pod.path())
        .env(&variables)
        .run(&config("1.0.0", &agent.scratch))
        .success();
    let seen = agent.next();
    assert_eq!(seen.netns_inode, Some(pod.inode()));
    assert_eq!(seen.request.contract, CONTRACT_VERSION);
    assert_eq!(seen.request.trace_parent.as_deref(), Some(trace));
    assert_eq!(seen.request.timeout_ms, 5000);
    assert_eq!(seen.request.config.other["anything"], json!({"is": "kept"}));
    let attachment = seen.request.operation.attachment().unwrap();
    assert_eq!(
        (attachment.id.container_id.as_str(), attachment.id.ifname.as_str()),
        ("c0ffee", "eth0")
    );
    assert_eq!(attachment.netns_path, pod.path());
    assert_eq!(
        (
            attachment.args.pod_namespace.as_str(),
            attachment.args.pod_name.as_str()
        ),
        ("default", "web-0")
    );

    let variables = [("CNI_COMMAND", "DEL"), ("TRACEPARENT", "00-NOT-A-TRACE")];
    Plugin::add(&pod.path())
        .env(&variables)
        .run(&config("1.0.0", &agent.scratch))
        .success();
    let seen = agent.next();
    assert_eq!(
        seen.netns_inode,
        Some(pod.inode()),
        "DEL sends a namespace that exists"
    );
    assert_eq!(
        seen.request.trace_parent, None,
        "a malformed trace context is ignored"
    );
}

#[test]
fn del_goes_through_without_a_namespace_and_with_rubbish_it_does_not_need() {
    let own = "/proc/self/ns/net";
    let scratch = Scratch::new();
    let file = scratch.path().join("left-over-mount-point");
    std::fs::write(&file, "").unwrap();
    for netns in [
        "",
        "/run/netns/does-not-exist",
        "/proc/0/ns/net",
        file.to_str().unwrap(),
        own,
    ] {
        let agent = Agent::answering(vec![Reply::Done]);
        let mut config = config("0.4.0", &agent.scratch);
        config["prevResult"] = json!({"ips": "zero-length cache or worse"});
        let variables = [("CNI_COMMAND", "DEL"), ("CNI_ARGS", "what=ever")];
        assert_eq!(
            Plugin::add(netns).env(&variables).run(&config).success(),
            None,
            "nothing on stdout"
        );
        let seen = agent.next();
        assert!(matches!(seen.request.operation, Operation::Del(_)));
        assert_eq!(seen.netns_inode, None, "{netns:?}");
        assert_eq!(seen.request.config.prev_result, None);
    }
}

#[test]
fn add_and_check_refuse_what_is_not_a_pods_namespace() {
    let scratch = Scratch::new();
    let file = scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    let fifo = scratch.path().join("fifo");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    let mut config = config("1.0.0", &scratch);
    config["prevResult"] = json!({"cniVersion": "1.0.0", "interfaces": [], "ips": []});
    for netns in [
        "/run/netns/does-not-exist",
        file.to_str().unwrap(),
        fifo.to_str().unwrap(),
        "/proc/self/ns/net",
    ] {
        for command in ["ADD", "CHECK"] {
            let error = Plugin::add(netns)
                .env(&[("CNI_COMMAND", command)])
                .run(&config)
                .failure();
            assert_eq!(error["code"], 4, "{command} {netns}: {error}");
            assert!(error["msg"].as_str().unwrap().contains("CNI_NETNS"), "{error}");
        }
    }
}

#[test]
fn a_chained_add_answers_with_the_previous_result_and_its_own() {
    let Some(pod) = Namespace::new() else { return };
    let agent = Agent::answering(vec![Reply::Added {
        result: attachment_result(),
    }]);
    let mut config = config("0.4.0", &agent.scratch);
    config["dns"] = json!({"nameservers": ["10.96.0.10"]});
    config["prevResult"] = json!({
        "cniVersion": "0.4.0",
        "interfaces": [{"name": "net0", "sandbox": pod.path()}],
        "ips": [{"version": "4", "address": "192.0.2.9/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"domain": "previous"},
    });
    let result = Plugin::add(&pod.path()).run(&config).success().unwrap();
    let names: Vec<&str> = result["interfaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["net0", "cali0123456789a", "eth0"]);
    let addresses: Vec<(&str, u64)> = result["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| (ip["address"].as_str().unwrap(), ip["interface"].as_u64().unwrap()))
        .collect();
    assert_eq!(
        addresses,
        [("192.0.2.9/24", 0), ("10.0.0.5/32", 2), ("fd00::5/128", 2)]
    );
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
    assert_eq!(result["dns"], json!({"nameservers": ["10.96.0.10"]}));
    let seen = agent.next();
    assert_eq!(
        seen.request.config.prev_result.unwrap().interfaces[0].name,
        "net0"
    );
}

#[test]
fn check_status_and_gc_reach_the_agent_and_print_nothing() {
    let Some(pod) = Namespace::new() else { return };
    let agent = Agent::answering(vec![Reply::Done, Reply::Done, Reply::Done]);
    let mut config = config("1.1.0", &agent.scratch);
    assert_eq!(Plugin::command("STATUS").run(&config).success(), None);
    assert_eq!(agent.next().request.operation, Operation::Status);

    let missing = Plugin::command("GC")
        .env(&[("CNI_PATH", "/opt/cni/bin")])
        .run(&config)
        .failure();
    assert_eq!(
        missing["code"], 7,
        "an absent list is not an empty one: {missing}"
    );
    config["cni.dev/valid-attachments"] = json!([{"containerID": "keep", "ifname": "eth0"}]);
    assert_eq!(
        Plugin::command("GC")
            .env(&[("CNI_PATH", "/opt/cni/bin")])
            .run(&config)
            .success(),
        None
    );
    let Operation::Gc { valid_attachments } = agent.next().request.operation else {
        panic!("not a GC")
    };
    assert_eq!(valid_attachments[0].container_id, "keep");

    let check = Plugin::add(&pod.path()).env(&[("CNI_COMMAND", "CHECK")]);
    assert_eq!(check.run(&config).failure()["code"], 7, "CHECK needs prevResult");
    config["prevResult"] = attachment_result().to_json(CniVersion::V1_1_0);
    assert_eq!(check.run(&config).success(), None);
    assert_eq!(agent.next().request.config.prev_result, Some(attachment_result()));
}

#[test]
fn the_agents_error_reaches_the_runtime_unchanged() {
    let error = CniError::new(ErrorCode::UNAVAILABLE_LIMITED, "no session is up").with_details("bird: idle");
    let agent = Agent::answering(vec![
        Reply::Failed { error: error.clone() },
        Reply::Failed { error },
    ]);
    let mut config = config("1.1.0", &agent.scratch);
    let run = Plugin::command("STATUS").run(&config);
    assert_eq!(run.stderr, "", "silent unless asked");
    let expected =
        json!({"cniVersion": "1.1.0", "code": 51, "msg": "no session is up", "details": "bird: idle"});
    assert_eq!(run.failure(), expected);
    config["log"] = json!("stderr");
    let run = Plugin::command("STATUS").run(&config);
    assert!(
        run.stderr
            .contains("STATUS network=pods: failed: no session is up (code 51)"),
        "{}",
        run.stderr
    );
    assert_eq!(run.failure(), expected, "stdout carries only JSON");
}

#[test]
fn an_absent_agent_is_try_again_later_and_for_status_unavailable() {
    let Some(pod) = Namespace::new() else { return };
    let scratch = Scratch::new();
    let mut config = config("1.1.0", &scratch);
    for left_over in ["no socket file", "a socket file nobody listens on"] {
        for (command, code) in [("ADD", 11), ("DEL", 11), ("STATUS", 50)] {
            let error = Plugin::add(&pod.path())
                .env(&[("CNI_COMMAND", command)])
                .run(&config)
                .failure();
            assert_eq!(error["code"], code, "{left_over}, {command}: {error}");
            assert!(
                error["msg"]
                    .as_str()
                    .unwrap()
                    .contains(config["socket"].as_str().unwrap()),
                "{error}"
            );
        }
        drop(UnixListener::bind(scratch.socket()).ok());
    }
    config["socket"] = json!("/proc/version");
    assert_eq!(
        Plugin::command("STATUS").run(&config).failure()["code"],
        50,
        "not a socket at all"
    );
}

#[test]
fn an_agent_that_hangs_is_given_up_after_the_timeout() {
    let scratch = Scratch::new();
    let mut config = config("1.1.0", &scratch);
    config["timeout_seconds"] = json!(1);
    // Accepted by the kernel, never by the agent: sending succeeds, the reply does not come.
    let listener = UnixListener::bind(scratch.socket()).unwrap();
    let error = Plugin::add("")
        .env(&[("CNI_COMMAND", "DEL")])
        .run(&config)
        .failure();
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("within 1 second"),
        "{error}"
    );
    // A backlog of zero takes one connection; the next one waits inside connect().
    drop(listener);
    std::fs::remove_file(scratch.socket()).unwrap();
    let full = runtime::listener_with_full_backlog(&scratch.socket());
    let error = Plugin::add("")
        .env(&[("CNI_COMMAND", "DEL")])
        .run(&config)
        .failure();
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["details"].as_str().unwrap().contains("connecting"),
        "{error}"
    );
    drop(full);
}

#[test]
fn an_agent_that_answers_rubbish_is_reported_and_never_a_crash() {
    let frame = |body: &str| [&u32::try_from(body.len()).unwrap().to_be_bytes(), body.as_bytes()].concat();
    let done = r#"{"contract":1,"outcome":"done"}"#;
    let cases: Vec<(Vec<u8>, u64)> = vec![
        (vec![], 11),
        (vec![0, 0], 11),
        (vec![0, 0, 0, 9, b'{'], 11),
        (frame(r#"{"contract":2,"outcome":"something else"}"#), 100),
        (
            frame(r#"{"contract":1,"outcome":"added","result":{"ips":[{"address":"10.0.0.1/33"}]}}"#),
            110,
        ),
        (frame(r#"{"contract":1,"outcome":"done"}"#), 110),
        (frame("{}"), 110),
        (frame(""), 110),
        (u32::MAX.to_be_bytes().to_vec(), 7),
        ([frame(done), frame(done)].concat(), 110),
    ];
    let Some(pod) = Namespace::new() else { return };
    for (answer, code) in cases {
        let scratch = Scratch::new();
        let listener = UnixListener::bind(scratch.socket()).unwrap();
        let sent = answer.clone();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut header = [0; 4];
            stream.read_exact(&mut header).unwrap();
            let mut body = vec![0; u32::from_be_bytes(header) as usize];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(&sent).unwrap();
        });
        let error = Plugin::add(&pod.path()).run(&config("1.0.0", &scratch)).failure();
        assert_eq!(
            error["code"],
            code,
            "{:?}: {error}",
            String::from_utf8_lossy(&answer)
        );
        // Plugin and agent of two versions: which speaks what is told.
        let says_versions = error.to_string().contains("contract version 2, this side 1");
        assert_eq!(says_versions, code == 100, "{error}");
        agent.join().unwrap();
    }
}

#[test]
fn the_example_network_configurations_are_some_the_plugin_accepts() {
    let examples = [
        include_str!("../../deploy/cni/10-calidris.conflist"),
        include_str!("../../deploy/cni/10-calidris-chained.conflist"),
    ];
    let scratch = Scratch::new();
    for example in examples {
        let list: Value = serde_json::from_str(example).unwrap();
        let mut request = list["plugins"][0].clone();
        assert_eq!(request["type"], "calidris-cni");
        request["name"] = list["name"].clone();
        request["socket"] = json!(scratch.socket());
        let versions = list["cniVersions"].as_array().unwrap().iter();
        for version in versions.chain([&list["cniVersion"]]) {
            request["cniVersion"] = version.clone();
            let error = Plugin::add("")
                .env(&[("CNI_COMMAND", "DEL")])
                .run(&request)
                .failure();
            assert_eq!(
                error["code"], 11,
                "valid, so it gets as far as the absent agent: {error}"
            );
        }
    }
}
