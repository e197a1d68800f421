//! What an ADD result has to look like, version by version (§5 "ADD Success").

use ipnetwork::IpNetwork;
use serde_json::Value;

use crate::judgement::{Judgement, Version};

/// What the request said that the result must repeat.
pub(super) struct Asked<'a> {
    pub(super) version: Version,
    pub(super) netns: &'a str,
    pub(super) ifname: &'a str,
}

/// Judges `result` as JSON, without looking at the kernel.
pub(super) fn judge(result: &Value, asked: &Asked<'_>, judgement: &mut Judgement) {
    judgement.must(result["cniVersion"] == asked.version, || {
        format!(
            "cniVersion is {}, asked in {}",
            result["cniVersion"], asked.version
        )
    });
    let interfaces = list(result, "interfaces", judgement);
    for interface in &interfaces {
        judge_interface(interface, asked, judgement);
    }
    let of_container = interfaces
        .iter()
        .find(|interface| interface["name"] == asked.ifname && in_container(interface));
    judgement.must(of_container.is_some(), || {
        format!("no interface {} with a sandbox in {result}", asked.ifname)
    });
    for ip in list(result, "ips", judgement) {
        judge_ip(&ip, interfaces.len(), asked.version, judgement);
    }
    for route in list(result, "routes", judgement) {
        judge_route(&route, asked.version, judgement);
    }
    let dns = &result["dns"];
    judgement.must(dns.is_null() || dns.is_object(), || format!("dns is {dns}"));
}

/// Whether an entry of `interfaces` is in the container.
pub(super) fn in_container(interface: &Value) -> bool {
    interface["sandbox"]
        .as_str()
        .is_some_and(|sandbox| !sandbox.is_empty())
}

/// An address or destination in CIDR notation. A bare address, which Rust's reader would take, is none.
pub(super) fn cidr(value: &Value) -> Option<IpNetwork> {
    value.as_str().filter(|text| text.contains('/'))?.parse().ok()
}

fn list(result: &Value, key: &str, judgement: &mut Judgement) -> Vec<Value> {
    match &result[key] {
        Value::Null => Vec::new(),
        Value::Array(entries) => entries.clone(),
        other => {
            judgement.must(false, || format!("{key} is not a list: {other}"));
            Vec::new()
        }
    }
}

fn judge_interface(interface: &Value, asked: &Asked<'_>, judgement: &mut Judgement) {
    judgement.must(
        interface["name"].as_str().is_some_and(|name| !name.is_empty()),
        || format!("an interface without name: {interface}"),
    );
    let mac = &interface["mac"];
    let is_mac = |mac: &str| {
        mac.split(':')
            .all(|part| part.len() == 2 && u8::from_str_radix(part, 16).is_ok())
    };
    judgement.must(mac.is_null() || mac.as_str().is_some_and(is_mac), || {
        format!("mac is {mac}")
    });
    if in_container(interface) {
        judgement.should(interface["sandbox"] == asked.netns, || {
            format!(
                "sandbox is {}, CNI_NETNS is {}",
                interface["sandbox"], asked.netns
            )
        });
    }
    for key in ["mtu", "socketPath", "pciID"] {
        forbid_before_1_1(interface, key, asked.version, judgement);
    }
}

fn judge_ip(ip: &Value, interfaces: usize, version: Version, judgement: &mut Judgement) {
    let address = cidr(&ip["address"]);
    judgement.must(address.is_some(), || {
        format!("address is not in CIDR notation: {ip}")
    });
    let family = address.map(|address| if address.is_ipv4() { "4" } else { "6" });
    if version < "1.0.0" {
        judgement.must(ip["version"].as_str() == family, || {
            format!("version must be \"4\" or \"6\": {ip}")
        });
    } else {
        judgement.should(ip["version"].is_null(), || {
            format!("1.0.0 has dropped version: {ip}")
        });
    }
    let gateway = &ip["gateway"];
    let is_address = gateway
        .as_str()
        .is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    judgement.must(gateway.is_null() || is_address, || {
        format!("gateway is not an address: {ip}")
    });
    let index = ip["interface"]
        .as_u64()
        .and_then(|index| usize::try_from(index).ok());
    judgement.must(index.is_some_and(|index| index < interfaces), || {
        format!("interface is not an index into {interfaces} interfaces: {ip}")
    });
}

fn judge_route(route: &Value, version: Version, judgement: &mut Judgement) {
    judgement.must(cidr(&route["dst"]).is_some(), || {
        format!("dst is not in CIDR notation: {route}")
    });
    let gw = &route["gw"];
    let is_address = gw
        .as_str()
        .is_some_and(|text| text.parse::<std::net::IpAddr>().is_ok());
    judgement.must(gw.is_null() || is_address, || {
        format!("gw is not an address: {route}")
    });
    for key in ["mtu", "advmss", "priority", "table", "scope"] {
        forbid_before_1_1(route, key, version, judgement);
        judgement.must(route[key].is_null() || route[key].is_u64(), || {
            format!("{key} is not a number: {route}")
        });
    }
}

fn forbid_before_1_1(entry: &Value, key: &str, version: Version, judgement: &mut Judgement) {
    if version < "1.1.0" {
        judgement.should(entry[key].is_null(), || {
            format!("{version} has no {key}: {entry}")
        });
    }
}
