//! Routes: a line each, or everything about one.

use std::fmt;

use calidris_bgp::route::NextHop;
use calidris_bgp::status::{AttributesSummary, CandidateStatus, ExportStatus, RouteStatus, Standing};

use super::{age, or_dash, words, write_fact};
use crate::report::table::write_table;

/// Which routes are lines of a [`RouteTable`].
#[derive(Debug, Clone, Copy)]
pub enum View<'a> {
    /// The best one of each prefix, and those used together with it.
    Best,
    /// All candidates.
    All,
    /// Those of this peer, used or not.
    From(&'a str),
    /// What this peer is told.
    To(&'a str),
}

/// Routes, a line each.
#[derive(Debug)]
pub struct RouteTable<'a> {
    /// By prefix.
    pub routes: &'a [RouteStatus],
    /// Which lines.
    pub view: View<'a>,
}

impl fmt::Display for RouteTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut columns = vec![
            "", "PREFIX", "NEXT HOP", "FROM", "LOC-PREF", "MED", "AS PATH", "ORIGIN",
        ];
        columns.push(match self.view {
            View::To(_) => "",
            _ => "SINCE",
        });
        let lines: Vec<Vec<String>> = self.routes.iter().flat_map(|route| self.lines(route)).collect();
        let count = lines.len();
        write_table(f, &columns, lines)?;
        match count {
            1 => writeln!(f, "\n1 route"),
            _ => writeln!(f, "\n{count} routes"),
        }
    }
}

impl RouteTable<'_> {
    fn lines(&self, route: &RouteStatus) -> Vec<Vec<String>> {
        if let View::To(peer) = self.view {
            let told = route.exports.iter().filter(|export| export.to == peer);
            return told
                .flat_map(|export| &export.announced)
                .map(|told| {
                    let mut line = line(">", route, "-", &told.attributes);
                    line.push(told.path_id.map_or_else(String::new, |id| format!("path {id}")));
                    line
                })
                .collect();
        }
        let shown = route.candidates.iter().filter(|candidate| match self.view {
            View::Best => matches!(candidate.standing, Standing::Best | Standing::Multipath),
            View::From(peer) => candidate.from.as_deref() == Some(peer),
            View::All | View::To(_) => true,
        });
        shown
            .map(|candidate| {
                let from = candidate.from.as_deref().unwrap_or("ourselves");
                let mut line = line(mark(&candidate.standing), route, from, &candidate.attributes);
                line.push(age(candidate.age).to_string());
                if let Some(last) = line.last_mut() {
                    last.push_str(&remark(candidate));
                }
                line
            })
            .collect()
    }
}

fn line(mark: &str, route: &RouteStatus, from: &str, attributes: &AttributesSummary) -> Vec<String> {
    vec![
        mark.to_owned(),
        route.prefix.to_string(),
        or_dash(attributes.next_hop),
        from.to_owned(),
        or_dash(attributes.local_pref),
        or_dash(attributes.med),
        path(attributes),
        attributes.origin.clone(),
    ]
}

/// As in other daemons' tables: best, used together with it, valid, refused.
fn mark(standing: &Standing) -> &'static str {
    match standing {
        Standing::Best => ">",
        Standing::Multipath => "=",
        Standing::Lost(_) => "*",
        Standing::Refused { .. } | Standing::Unreachable => "x",
    }
}

fn remark(candidate: &CandidateStatus) -> String {
    let stale = if candidate.stale { "  STALE" } else { "" };
    let stale = match candidate.path_id {
        0 => stale.to_owned(),
        id => format!("  path {id}{stale}"),
    };
    match &candidate.standing {
        Standing::Refused { .. } | Standing::Unreachable => {
            format!("{stale}  {}", standing(&candidate.standing))
        }
        _ => stale,
    }
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Best => "best".to_owned(),
        Standing::Multipath => "used together with the best".to_owned(),
        Standing::Lost(step) => format!("lost at {}", words(step)),
        Standing::Unreachable => "next hop out of reach".to_owned(),
        Standing::Refused { term: Some(term), .. } => format!("refused: import term {term:?}"),
        Standing::Refused { reason, term: None } => match words(reason) {
            // Policies have a value beside their name.
            none if none.is_empty() => "refused: no import term accepts it".to_owned(),
            reason => format!("refused: {reason}"),
        },
    }
}

fn path(attributes: &AttributesSummary) -> String {
    match attributes.as_path.as_str() {
        "" => "-".to_owned(),
        path => path.to_owned(),
    }
}

/// Everything about one prefix.
#[derive(Debug)]
pub struct RouteDetails<'a>(pub &'a RouteStatus);

impl fmt::Display for RouteDetails<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = self.0;
        let decided = match &route.decided_by {
            Some(step) => format!("best by {}", words(step)),
            None => "none of them usable".to_owned(),
        };
        writeln!(
            f,
            "{}: {} candidates, {decided}",
            route.prefix,
            route.candidates.len()
        )?;
        for candidate in &route.candidates {
            write_candidate(f, candidate)?;
        }
        if !route.exports.is_empty() {
            writeln!(f, "\ntold to peers")?;
        }
        for export in &route.exports {
            write_export(f, export)?;
        }
        Ok(())
    }
}

fn write_candidate(f: &mut fmt::Formatter<'_>, candidate: &CandidateStatus) -> fmt::Result {
    let from = candidate.from.as_deref().unwrap_or("ourselves");
    writeln!(
        f,
        "\n{} from {from} ({}), known {}{}",
        mark(&candidate.standing),
        words(&candidate.source),
        age(candidate.age),
        if candidate.stale { ", STALE" } else { "" }
    )?;
    if candidate.path_id != 0 {
        write_fact(f, "  path ID", candidate.path_id)?;
    }
    write_fact(f, "  standing", standing(&candidate.standing))?;
    if let Some(cost) = candidate.next_hop_cost {
        write_fact(f, "  cost to next hop", cost)?;
    }
    if !candidate.via.is_empty() {
        let via: Vec<String> = candidate.via.iter().map(neighbour).collect();
        write_fact(f, "  via", via.join(", "))?;
    }
    if let Some(id) = candidate.peer_router_id {
        write_fact(
            f,
            "  peer",
            format_args!("router ID {id}, weight {}", candidate.weight),
        )?;
    }
    write_attributes(f, &candidate.attributes)?;
    if !candidate.terms.is_empty() {
        write_fact(
            f,
            "  import terms",
            format_args!(" {}", candidate.terms.join(", ")),
        )?;
    }
    if let Some(received) = &candidate.received {
        writeln!(f, "  as received, before import policy:")?;
        write_attributes(f, received)?;
    }
    Ok(())
}

fn neighbour(next_hop: &NextHop) -> String {
    match next_hop.scope_id {
        Some(link) => format!("{} on link {link}", next_hop.address),
        None => next_hop.address.to_string(),
    }
}

fn write_attributes(f: &mut fmt::Formatter<'_>, attributes: &AttributesSummary) -> fmt::Result {
    write_fact(f, "  next hop", or_dash(attributes.next_hop))?;
    write_fact(f, "  AS path", path(attributes))?;
    write_fact(
        f,
        "  preference",
        format_args!(
            "local {}, MED {}, origin {}",
            or_dash(attributes.local_pref),
            or_dash(attributes.med),
            attributes.origin
        ),
    )?;
    if !attributes.communities.is_empty() {
        write_fact(f, "  communities", attributes.communities.join(" "))?;
    }
    if let Some(link_local) = attributes.link_local_next_hop {
        write_fact(f, "  link-local", link_local)?;
    }
    let rest = [
        attributes.atomic_aggregate.then(|| "atomic aggregate".to_owned()),
        attributes
            .aggregator
            .as_ref()
            .map(|by| format!("aggregated by {by}")),
        attributes.aigp.map(|metric| format!("AIGP {metric}")),
        attributes.otc.map(|asn| format!("only to customers (AS {asn})")),
        attributes.priority.map(|priority| format!("priority {priority}")),
        attributes
            .interface
            .as_ref()
            .map(|link| format!("by link {link}")),
    ];
    let rest: Vec<String> = rest.into_iter().flatten().collect();
    if !rest.is_empty() {
        write_fact(f, "  also", rest.join(", "))?;
    }
    if !attributes.unknown.is_empty() {
        write_fact(f, "  unknown", attributes.unknown.join(", "))?;
    }
    if let Some(originator) = attributes.originator_id {
        let clusters: Vec<String> = attributes.cluster_list.iter().map(ToString::to_string).collect();
        write_fact(
            f,
            "  reflected",
            format_args!("from {originator} by clusters {}", clusters.join(" ")),
        )?;
    }
    Ok(())
}

fn write_export(f: &mut fmt::Formatter<'_>, export: &ExportStatus) -> fmt::Result {
    let terms = match export.terms.as_slice() {
        [] => String::new(),
        terms => format!(" (export terms {})", terms.join(", ")),
    };
    for told in &export.announced {
        let id = told
            .path_id
            .map_or_else(String::new, |id| format!(" as path {id}"));
        writeln!(f, "  {}: announced{id}{terms}", export.to)?;
        write_attributes(f, &told.attributes)?;
    }
    match (export.announced.as_slice(), &export.withheld) {
        ([_, ..], _) => Ok(()),
        ([], Some(reason)) => {
            let reason = match words(reason) {
                none if none.is_empty() => "no export term accepts it".to_owned(),
                reason => reason,
            };
            writeln!(f, "  {}: withheld: {reason}{terms}", export.to)
        }
        ([], None) => writeln!(f, "  {}: nothing", export.to),
    }
}
