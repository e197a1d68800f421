//! `calidris bgp`: questions to the control socket of an agent or a speaker, answered as tables or JSON.

use std::io::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use calidris_bgp::family::{AfiSafi, Prefix};
use calidris_bgp::status::{RouteFilter, RouteStatus, SpeakerStatus};
use clap::{Args, Subcommand};

use super::{Exit, Output, complain, json};
use crate::bgp_report::{PeerDetails, PeerTable, RouteDetails, RouteTable, View};
use crate::config;
use crate::control::{Answer, AskError, Request, ask};
use crate::reload::ReloadReport;

#[derive(Debug, Args)]
pub(super) struct BgpArgs {
    #[command(subcommand)]
    question: Question,
    /// The control socket
    #[arg(long, global = true, value_name = "PATH", default_value = config::DEFAULT_CONTROL_SOCKET)]
    socket: PathBuf,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// All peers, a line each
    #[command(after_help = "\
RECEIVED, ACCEPTED and ANNOUNCED count routes of all families. LAST ERROR says why the last session or attempt ended, or why there is
to be none.")]
    Peers,
    /// Everything about one peer: negotiated capabilities, timers, counters, the last error
    #[command(after_help = "\
Examples:
  calidris bgp peer tor-a
  calidris bgp peer tor-a -o json | jq .timers_seconds
  calidris bgp peer tor-a -o json | jq -r .last_error.text

Exit status: 0 shown, 1 there is no such peer, 4 nobody answers at the socket.")]
    Peer {
        /// Its name
        name: String,
    },
    /// Routes, a line each; the best ones unless told otherwise
    #[command(after_help = "\
Examples:
  calidris bgp routes                                   the best of each prefix
  calidris bgp routes --all --within 10.0.0.0/8
  calidris bgp routes --in tor-a                        also those that were refused, with the term that did
  calidris bgp routes --out tor-a --limit 100 -o json

Marks: > the best, = used together with it, * usable, x not used.
Exit status: 0 shown, 1 there is no such peer, 4 nobody answers at the socket.")]
    Routes(RoutesArgs),
    /// Everything about one route: all candidates, why the best is best, and what each peer is told
    #[command(after_help = "\
Examples:
  calidris bgp route 10.244.1.0/26
  calidris bgp route 2001:db8::7                        of the longest prefix that covers the address
  calidris bgp route 10.244.1.0/26 -o json | jq -r '.candidates[].standing'

For each candidate: the step of the decision process at which it lost, or what refused it; its attributes as they came and as import
left them; the terms that matched. For each peer: what it is told, or why not.
Exit status: 0 shown, 1 there is no such route, 4 nobody answers at the socket.")]
    Route {
        /// A prefix, or an address that a route covers
        #[arg(value_name = "PREFIX|ADDRESS")]
        target: Target,
    },
    /// Ask a peer to send its routes again (route refresh)
    #[command(after_help = "\
Examples:
  calidris bgp refresh tor-a
  calidris bgp refresh tor-a --family ipv4-unicast

Exit status: 0 asked, 1 there is no Established session that knows of route refresh, 4 nobody answers at the socket.")]
    Refresh {
        /// Its name
        name: String,
        /// Only this family; all that the session carries otherwise
        #[arg(long, value_name = "FAMILY")]
        family: Option<AfiSafi>,
    },
    /// Read the configuration again and tell what it would change, without applying it
    #[command(after_help = "\
Exit status: 0 told, 1 the configuration is wrong (what it says of it is on stderr), 4 nobody answers at the socket.")]
    Plan,
    /// Read the configuration again, tell what it will change, and apply it
    #[command(after_help = "\
What will be done is told first, as by `calidris bgp plan`; then it is done, and \"applied\" is the last line. A configuration that is wrong changes nothing.
With -o json there is one document, of what was done.
Exit status: 0 applied, 1 the configuration is wrong (what it says of it is on stderr), 4 nobody answers at the socket.")]
    Reload,
}

#[derive(Debug, Args)]
#[group(multiple = false, id = "view")]
struct ViewArgs {
    /// What a peer announced, and what became of it
    #[arg(long = "in", value_name = "PEER")]
    from: Option<String>,
    /// What a peer is told
    #[arg(long = "out", value_name = "PEER")]
    to: Option<String>,
    /// The best route of each prefix
    #[arg(long)]
    best: bool,
    /// All candidates, also those not used
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
struct RoutesArgs {
    #[command(flatten)]
    view: ViewArgs,
    /// Only prefixes inside this one
    #[arg(long, value_name = "PREFIX")]
    within: Option<Prefix>,
    /// At most this many prefixes
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    limit: usize,
}

/// A prefix or an address.
#[derive(Debug, Clone, Copy)]
enum Target {
    Prefix(Prefix),
    Address(IpAddr),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        text.parse()
            .map(Self::Prefix)
            .map_err(|error| format!("{error}; expected a prefix such as 10.0.0.0/8, or an address"))
    }
}

/// Asks and shows.
pub(super) fn run(args: &BgpArgs) -> Exit {
    let shown = match &args.question {
        Question::Peers => args.speaker().map(|speaker| match args.output {
            Output::Table => print!("{}", PeerTable(&speaker)),
            Output::Json => println!("{}", json(&speaker)),
        }),
        Question::Peer { name } => args.peer(name),
        Question::Routes(routes) => args.routes(routes),
        Question::Route { target } => args.route(*target),
        Question::Refresh { name, family } => args.refresh(name, *family),
        Question::Plan => args.plan(),
        Question::Reload => args.reload(),
    };
    match shown {
        Ok(()) => Exit::Done,
        Err(error @ AskError::NoAgent { .. }) => complain(&error, Exit::NoAgent),
        Err(error) => complain(&error, Exit::Failed),
    }
}

impl BgpArgs {
    fn speaker(&self) -> Result<SpeakerStatus, AskError> {
        let mut found = None;
        ask(&self.socket, &Request::BgpStatus, |answer| {
            if let Answer::BgpStatus(status) = answer {
                found = Some(status);
            }
        })?;
        found.ok_or_else(|| AskError::Refused("the answer holds no BGP speaker".to_owned()))
    }

    fn peer(&self, name: &str) -> Result<(), AskError> {
        let speaker = self.speaker()?;
        let Some(peer) = speaker.peers.iter().find(|peer| peer.name == name) else {
            let names: Vec<&str> = speaker.peers.iter().map(|peer| peer.name.as_str()).collect();
            return Err(AskError::Refused(format!(
                "there is no peer {name:?}; there are: {}",
                names.join(", ")
            )));
        };
        match self.output {
            Output::Table => print!("{}", PeerDetails(peer)),
            Output::Json => println!("{}", json(peer)),
        }
        Ok(())
    }

    fn routes(&self, asked: &RoutesArgs) -> Result<(), AskError> {
        let filter = RouteFilter {
            within: asked.within,
            from: asked.view.from.clone(),
            to: asked.view.to.clone(),
            limit: asked.limit,
            ..RouteFilter::default()
        };
        // A name nobody has would look like a peer without routes.
        if let Some(name) = filter.from.as_ref().or(filter.to.as_ref()) {
            self.check_name(name)?;
        }
        let routes = self.fetch(filter)?;
        let view = match &asked.view {
            ViewArgs { from: Some(peer), .. } => View::From(peer),
            ViewArgs { to: Some(peer), .. } => View::To(peer),
            ViewArgs { all: true, .. } => View::All,
            _ => View::Best,
        };
        match self.output {
            Output::Table => print!(
                "{}",
                RouteTable {
                    routes: &routes,
                    view
                }
            ),
            Output::Json => println!("{}", json(&routes)),
        }
        Ok(())
    }

    fn route(&self, target: Target) -> Result<(), AskError> {
        let (prefix, address) = match target {
            Target::Prefix(prefix) => (Some(prefix), None),
            Target::Address(address) => (None, Some(address)),
        };
        let routes = self.fetch(RouteFilter {
            prefix,
            address,
            ..RouteFilter::default()
        })?;
        let Some(route) = routes.first() else {
            let what = match target {
                Target::Prefix(prefix) => format!("there is no route to exactly {prefix}"),
                Target::Address(address) => format!("no route covers {address}"),
            };
            return Err(AskError::Refused(what));
        };
        match self.output {
            Output::Table => print!("{}", RouteDetails(route)),
            Output::Json => println!("{}", json(route)),
        }
        Ok(())
    }

    fn refresh(&self, name: &str, family: Option<AfiSafi>) -> Result<(), AskError> {
        let families = match family {
            Some(family) => vec![family],
            None => self.negotiated_families(name)?,
        };
        for family in families {
            let request = Request::BgpRefresh {
                peer: name.to_owned(),
                family,
            };
            ask(&self.socket, &request, drop)?;
        }
        Ok(())
    }

    fn negotiated_families(&self, name: &str) -> Result<Vec<AfiSafi>, AskError> {
        let speaker = self.speaker()?;
        let peer = speaker.peers.into_iter().find(|peer| peer.name == name);
        let session = peer.and_then(|peer| peer.negotiated);
        session
            .map(|session| session.families)
            .ok_or_else(|| AskError::Refused(format!("there is no Established session with a peer {name:?}")))
    }

    fn check_name(&self, name: &str) -> Result<(), AskError> {
        let speaker = self.speaker()?;
        if speaker.peers.iter().any(|peer| peer.name == name) {
            return Ok(());
        }
        Err(AskError::Refused(format!("there is no peer {name:?}")))
    }

    fn fetch(&self, filter: RouteFilter) -> Result<Vec<RouteStatus>, AskError> {
        let mut routes = Vec::new();
        ask(&self.socket, &Request::BgpRoutes(filter), |answer| {
            if let Answer::BgpRoute(route) = answer {
                routes.push(route);
            }
        })?;
        routes.sort_by_key(|route| route.prefix);
        Ok(routes)
    }

    fn plan(&self) -> Result<(), AskError> {
        let report = self.report(&Request::Plan)?;
        match self.output {
            Output::Table => print!("{report}"),
            Output::Json => println!("{}", json(&report)),
        }
        Ok(())
    }

    /// Tells what will be done, then has it done. For programs there is one document: what was done.
    fn reload(&self) -> Result<(), AskError> {
        if matches!(self.output, Output::Json) {
            println!("{}", json(&self.report(&Request::Reload)?));
            return Ok(());
        }
        let planned = self.report(&Request::Plan)?;
        print!("{planned}");
        // Whoever reads this through a pipe reads it before anything happens.
        let _closed = std::io::stdout().flush();
        let done = self.report(&Request::Reload)?;
        let is_as_planned = ReloadReport {
            applied: true,
            ..planned
        } == done;
        if is_as_planned {
            println!("applied");
        } else {
            print!("applied, and meanwhile something else had changed:\n{done}");
        }
        Ok(())
    }

    fn report(&self, request: &Request) -> Result<ReloadReport, AskError> {
        let mut found = None;
        ask(&self.socket, request, |answer| {
            if let Answer::Reload(report) = answer {
                found = Some(report);
            }
        })?;
        found.ok_or_else(|| AskError::Refused("the answer holds no report".to_owned()))
    }
}
