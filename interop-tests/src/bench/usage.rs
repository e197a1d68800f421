//! What a running process has used so far, from `/proc`.

use anyhow::Context;

/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ`, 100 on every architecture that Linux runs us on.
const TICKS: f64 = 100.0;

/// Processor time of the process so far, user and system, in seconds.
///
/// # Errors
/// When there is no such process.
pub(super) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    // Behind the name: state is the first field, utime and stime the 12th and 13th.
    stat_seconds(&format!("/proc/{pid}/stat"), [11, 12])
}

/// Processor time of all processes that this one has started and seen end, user and system, in seconds.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn ended_children_cpu_seconds() -> anyhow::Result<f64> {
    // cutime and cstime.
    stat_seconds("/proc/self/stat", [13, 14])
}

/// The sum of two fields of a `stat` file, counted behind the name, which may hold anything.
fn stat_seconds(file: &str, [first, second]: [usize; 2]) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(file)?;
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = |at: usize| {
        fields
            .split_ascii_whitespace()
            .nth(at)
            .and_then(|text| text.parse::<f64>().ok())
    };
    let (user, system) = ticks(first)
        .zip(ticks(second))
        .with_context(|| format!("{file}: {stat:?}"))?;
    Ok((user + system) / TICKS)
}

/// Processor time that the whole machine has spent so far, in seconds: of all processes and of the kernel itself, its
/// interrupts and deferred work included; idle and stolen time are not.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn machine_cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    // user, nice, system, idle, iowait, irq, softirq, …
    let ticks: Vec<f64> = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "))
        .with_context(|| format!("/proc/stat: {text:?}"))?
        .split_ascii_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let busy = ticks.iter().take(7).enumerate();
    Ok(busy
        .filter(|(at, _)| !matches!(at, 3 | 4))
        .map(|(_, ticks)| ticks)
        .sum::<f64>()
        / TICKS)
}

/// The most memory the process ever had resident (`VmHWM`), in MiB.
///
/// # Errors
/// When there is no such process.
pub(super) fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no VmHWM in {status:?}"))? / 1024.0)
}
