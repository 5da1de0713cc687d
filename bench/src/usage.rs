//! What a process has used so far, from proc(5).

use anyhow::Context;

/// Resident memory. Sockets' buffers in the kernel aren't in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now_bytes: u64,
    pub(crate) peak_bytes: u64,
}

pub(crate) fn memory(pid: u32) -> anyhow::Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key} in {status}"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{key}{line}"))?;
        anyhow::Ok(kib * 1024)
    };
    Ok(Memory { now_bytes: bytes("VmRSS:")?, peak_bytes: bytes("VmHWM:")? })
}

/// CPU seconds of all its threads, ended ones too, in user and kernel mode: fields 14 and 15 of `stat`.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    let ticks = ticks(&stat).with_context(|| format!("not understood: {stat}"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Fields are counted from behind the name, which may have spaces and parentheses itself.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 900 0 0 0 17 25 3 4 20 0 3 0 1000 1 2 3";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("42 (short) S 1"), None);
    }

    #[test]
    fn of_this_process() {
        let pid = std::process::id();
        let memory = memory(pid).unwrap();
        assert!(memory.now_bytes > 0 && memory.peak_bytes >= memory.now_bytes / 2, "{memory:?}");
        let before = cpu_seconds(pid).unwrap();
        let begin = std::time::Instant::now();
        while begin.elapsed() < std::time::Duration::from_millis(200) {}
        let used = cpu_seconds(pid).unwrap() - before;
        assert!(used > 0.02, "{used}");
    }
}
