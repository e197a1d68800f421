//! Every clause of the specification that the conformance suite knows, in every version.

use anyhow::ensure;
use calidris_interop::binaries::Binaries;
use calidris_interop::cluster::Cluster;
use calidris_interop::conformance;
use calidris_interop::require;
use calidris_interop::require::LAB;

#[test]
fn every_clause_of_the_specification_holds() -> anyhow::Result<()> {
    require!(LAB);
    let cluster = Cluster::for_test("conformance", 1)?;
    let folder = cluster.lab.folder("report")?;
    let report = conformance::judge_ours(&folder, cluster.node("node1")?, &Binaries::find()?)?;
    let cases = report["cases"].as_array().map_or(0, Vec::len);
    ensure!(cases > 50, "only {cases} cases: {report}");
    let spoken = report["supported_versions"].as_array().map_or(0, Vec::len);
    ensure!(spoken == 4, "0.3.1, 0.4.0, 1.0.0 and 1.1.0 are spoken: {report}");
    let not_passed = conformance::not_passed(&report);
    ensure!(not_passed.is_empty(), "{}", not_passed.join("\n"));
    cluster.lab.take_down()
}
