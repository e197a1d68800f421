//! Concurrency (§3 "Lifecycle & Ordering").

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use crate::judgement::{Attached, Case, Judgement, Trial};

pub(super) const CASES: &[Case] = &[Case {
    name: "concurrency.containers",
    clause: "§3 Lifecycle: MUST handle concurrent execution across containers (16 at once, no address twice)",
    since: "0.3.1",
    before: None,
    judge: containers,
}];

const AT_ONCE: usize = 16;

fn containers(trial: &Trial<'_>, judgement: &mut Judgement) -> Result<()> {
    let pods = (0..AT_ONCE).map(|_| trial.pod()).collect::<Result<Vec<_>>>()?;
    let added: Vec<Result<Attached>> = std::thread::scope(|scope| {
        let running: Vec<_> = pods
            .into_iter()
            .map(|pod| scope.spawn(move || trial.add(&pod).map(|result| Attached { pod, result })))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("panicked"))))
            .collect()
    });
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in &added {
        match outcome {
            Err(error) => judgement.must(false, || format!("{error:#}")),
            Ok(attached) => {
                for ip in attached.result["ips"].as_array().into_iter().flatten() {
                    *owners.entry(ip["address"].to_string()).or_default() += 1;
                }
            }
        }
    }
    for (address, count) in owners {
        judgement.must(count == 1, || {
            format!("{address} was given to {count} containers")
        });
    }
    let failed = std::thread::scope(|scope| {
        let running: Vec<_> = added
            .iter()
            .flatten()
            .map(|attached| scope.spawn(move || trial.del(attached)))
            .collect();
        let outputs = running
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .flatten();
        outputs
            .filter(|output| !output.succeeded())
            .map(|output| output.summary())
            .collect::<Vec<_>>()
    });
    judgement.must(failed.is_empty(), || format!("DEL at once: {failed:?}"));
    Ok(())
}
