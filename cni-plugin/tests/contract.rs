//! The contract as bytes and over a socket, both sides of the library against each other and against hostile peers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use calidris_cni::contract::{ContractError, MAX_MESSAGE, Operation, Reply, Request, Step, body_length};
use calidris_cni::error::{CniError, ErrorCode};
use calidris_cni::invocation::Environment;
use calidris_cni::result::AddResult;
use calidris_cni::socket::{read_request, write_reply};
use calidris_cni::spec::{
    AttachmentId, BadPrevResult, NetConf, RuntimeConfig, is_valid_ifname, is_valid_name,
};
use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(20);

fn request(command: &str) -> Request {
    let stdin = json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "calidris-cni", "x": [1],
        "runtimeConfig": {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.9"], "new": {},
            "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}],
            "io.kubernetes.cri.pod-annotations": {"cni.projectcalico.org/ipv4pools": "[]"}},
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/n"}],
            "ips": [{"address": "10.0.0.9/32", "interface": 0}]},
        "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
    });
    let environment = Environment::read(|name| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => "c0ffee",
            "CNI_IFNAME" => "eth0",
            "CNI_NETNS" => "/run/netns/x",
            "CNI_PATH" => "/opt/cni/bin",
            "CNI_ARGS" => "IgnoreUnknown=true;K8S_POD_NAME=web;IP=10.0.0.9;A=B=C;",
            _ => return None,
        };
        Some(value.into())
    });
    environment
        .unwrap()
        .into_request(stdin.to_string().as_bytes())
        .unwrap()
}

fn body(message: &[u8]) -> &[u8] {
    let (header, body) = message.split_first_chunk().unwrap();
    assert_eq!(body_length(*header).unwrap(), body.len());
    body
}

#[test]
fn every_request_and_reply_survives_the_wire() {
    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        let request = request(command);
        assert_eq!(
            Request::decode(body(&request.encode().unwrap())).unwrap(),
            request
        );
        assert_eq!(request.operation.command(), command);
    }
    let error = CniError::new(ErrorCode(4711), "m").with_details("d");
    for reply in [
        Reply::Added {
            result: AddResult::default(),
        },
        Reply::Done,
        Reply::Failed { error },
    ] {
        assert_eq!(Reply::decode(body(&reply.encode().unwrap())).unwrap(), reply);
    }
    let attachment = request("ADD").operation.attachment().unwrap().clone();
    assert_eq!(attachment.args.pod_name, "web");
    assert_eq!(attachment.args.other["A"], "B=C");
}

#[test]
fn capabilities_arrive_typed_and_unknown_ones_are_kept() {
    let capabilities = request("ADD").config.runtime_config;
    assert_eq!(capabilities.mac.as_deref(), Some("02:00:00:00:00:01"));
    assert_eq!(capabilities.ips, ["10.0.0.9/32".parse().unwrap()]);
    assert_eq!(
        (
            capabilities.port_mappings[0].host_port,
            capabilities.port_mappings[0].container_port
        ),
        (80, 8080)
    );
    assert_eq!(
        capabilities.pod_annotations["cni.projectcalico.org/ipv4pools"],
        "[]"
    );
    assert_eq!(capabilities.other["new"], json!({}));
}

#[test]
fn what_containerd_prints_with_the_names_of_go_is_understood() {
    let parse = |runtime_config: serde_json::Value| {
        let config = json!({"cniVersion": "1.0.0", "name": "pods", "type": "calidris-cni", "runtimeConfig": runtime_config});
        let parsed = NetConf::parse(config.to_string().as_bytes(), BadPrevResult::Refuse);
        parsed.unwrap().runtime_config
    };
    let of_containerd = parse(json!({
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
        "bandwidth": {"IngressRate": 1, "IngressBurst": 2, "EgressRate": 3, "EgressBurst": 4},
        "ipRanges": [[{"Subnet": "10.1.0.0/16", "RangeStart": "", "RangeEnd": "", "Gateway": ""}]],
    }));
    let of_others = parse(json!({
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 1, "ingressBurst": 2, "egressRate": 3, "egressBurst": 4},
        "ipRanges": [[{"subnet": "10.1.0.0/16"}]],
    }));
    assert_eq!(of_containerd, of_others);
}

#[test]
fn what_go_prints_as_null_is_empty() {
    let parse =
        |config: serde_json::Value| NetConf::parse(config.to_string().as_bytes(), BadPrevResult::Refuse);
    let config = parse(json!({
        "cniVersion": "1.1.0", "name": "pods", "type": "calidris-cni", "args": null, "socket": null,
        "runtimeConfig": {"portMappings": null, "io.kubernetes.cri.pod-annotations": null, "ips": null},
        "dns": {"nameservers": null},
        "prevResult": {"interfaces": [{"name": "eth0", "mac": null}], "ips": null, "routes": null, "dns": null},
        "cni.dev/valid-attachments": null,
    }))
    .unwrap();
    assert_eq!(config.runtime_config, RuntimeConfig::default());
    assert_eq!(config.prev_result.as_ref().unwrap().interfaces.len(), 1);
    assert_eq!(
        config.valid_attachments().unwrap(),
        [],
        "an empty list, printed by Go"
    );
    let absent = parse(json!({"cniVersion": "1.1.0", "name": "pods", "type": "calidris-cni"})).unwrap();
    assert_eq!(
        absent.valid_attachments().unwrap_err().code,
        ErrorCode::INVALID_CONFIG
    );
    let other_name = parse(
        json!({"cniVersion": "1.1.0", "name": "pods", "type": "calidris-cni",
        "cni.dev/attachments": [{"containerID": "a", "ifname": "eth0"}]}),
    );
    assert_eq!(other_name.unwrap().valid_attachments().unwrap().len(), 1);
}

#[test]
fn the_version_is_compared_before_anything_else_is_read() {
    let foreign = br#"{"contract":7,"operation":"unheard of"}"#;
    assert!(matches!(
        Request::decode(foreign),
        Err(ContractError::Version { theirs: 7 })
    ));
    assert!(matches!(
        Reply::decode(foreign),
        Err(ContractError::Version { theirs: 7 })
    ));
    assert!(matches!(Request::decode(b"{}"), Err(ContractError::Malformed(_))));
    let Reply::Failed { error } = Reply::to_unreadable_request(&ContractError::Version { theirs: 7 }) else {
        panic!("not a failure")
    };
    assert_eq!(error.code, ErrorCode::CONTRACT_MISMATCH);
    assert!(error.details.contains('7'));
}

#[test]
fn a_message_over_the_limit_is_neither_sent_nor_received() {
    let mut request = request("GC");
    let attachment = AttachmentId {
        container_id: "c".repeat(64),
        ifname: "eth0".into(),
    };
    request.operation = Operation::Gc {
        valid_attachments: vec![attachment; 20_000],
    };
    assert!(matches!(request.encode(), Err(ContractError::TooLong { .. })));
    let just_fits = u32::try_from(MAX_MESSAGE).unwrap();
    assert_eq!(body_length(just_fits.to_be_bytes()).unwrap(), MAX_MESSAGE);
    assert!(body_length((just_fits + 1).to_be_bytes()).is_err());
}

/// Sends `message` with `descriptors` beside its first byte, as a foreign client might.
fn send_with(stream: &UnixStream, message: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn the_agent_takes_exactly_the_descriptor_an_operation_has() {
    let namespace = File::open("/proc/self/ns/net").unwrap();
    let file = File::open("/proc/version").unwrap();
    let (namespace, file) = (namespace.as_fd(), file.as_fd());
    let cases: &[(&str, &[BorrowedFd<'_>], bool)] = &[
        ("ADD", &[namespace], true),
        ("ADD", &[], false),
        ("ADD", &[file], false),
        ("ADD", &[namespace, namespace], false),
        (
            "ADD",
            &[namespace, namespace, namespace, namespace, namespace],
            false,
        ),
        ("CHECK", &[], false),
        ("DEL", &[], true),
        ("DEL", &[namespace], true),
        ("STATUS", &[], true),
        ("STATUS", &[namespace], false),
        ("GC", &[namespace], false),
    ];
    for (command, descriptors, accepted) in cases {
        let (plugin, agent) = UnixStream::pair().unwrap();
        send_with(&plugin, &request(command).encode().unwrap(), descriptors);
        match read_request(&agent, PATIENCE) {
            Ok(received) => {
                assert!(*accepted, "{command} with {} descriptors", descriptors.len());
                assert_eq!(received.netns.is_some(), descriptors.len() == 1);
            }
            Err(error) => {
                assert!(
                    !accepted,
                    "{command} with {} descriptors: {error}",
                    descriptors.len()
                );
                assert!(matches!(error, ContractError::Descriptor(_)), "{error}");
            }
        }
    }
}

#[test]
fn a_plugin_that_stops_half_way_costs_the_agent_a_bounded_time() {
    let message = request("STATUS").encode().unwrap();
    for length in [0, 1, 3, 4, message.len() - 1] {
        let (mut plugin, agent) = UnixStream::pair().unwrap();
        plugin.write_all(&message[..length]).unwrap();
        let error = read_request(&agent, Duration::from_millis(30)).unwrap_err();
        assert!(
            matches!(error, ContractError::TimedOut(Step::Receive)),
            "{length} bytes, open: {error}"
        );
        drop(plugin);
        let error = read_request(&agent, PATIENCE).unwrap_err();
        assert!(
            matches!(
                error,
                ContractError::Io {
                    step: Step::Receive,
                    ..
                }
            ),
            "closed: {error}"
        );
    }
}

#[test]
fn replying_to_a_plugin_that_has_gone_is_an_error_and_no_signal() {
    let (plugin, agent) = UnixStream::pair().unwrap();
    drop(plugin);
    assert!(matches!(
        write_reply(&agent, &Reply::Done, PATIENCE),
        Err(ContractError::Io { step: Step::Send, .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = (Request::decode(&bytes), Reply::decode(&bytes));
        let _ = NetConf::parse(&bytes, BadPrevResult::Refuse);
    }

    #[test]
    fn a_damaged_request_is_read_or_refused_but_never_a_panic(at in 0usize..2000, byte: u8) {
        let message = request("GC").encode().unwrap();
        let mut body = body(&message).to_vec();
        let at = at % body.len();
        body[at] = byte;
        if let Ok(read) = Request::decode(&body) {
            let again = read.encode().unwrap();
            prop_assert_eq!(Request::decode(&again[4..]).unwrap(), read);
        }
    }

    #[test]
    fn names_follow_the_specifications_syntax(text in "\\PC{0,20}") {
        let model = !text.is_empty()
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
            && !text.starts_with(['_', '.', '-']);
        prop_assert_eq!(is_valid_name(&text), model);
        if is_valid_ifname(&text) {
            prop_assert!(text.len() < 16 && !text.contains(['/', ':', ' ']));
        }
    }
}
