//! What the kernel says of this process, under the names that every Prometheus client uses.

use std::fs;

use rustix::process::Resource;

/// One reading; `None` where the kernel does not say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// CPU time in user and system mode, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Descriptors that are open.
    pub(super) open_fds: Option<u64>,
    /// Descriptors that may be open.
    pub(super) max_fds: Option<u64>,
    /// Memory that is in RAM, in bytes.
    pub(super) resident_bytes: Option<u64>,
    /// Address space, in bytes.
    pub(super) virtual_bytes: Option<u64>,
    /// Threads.
    pub(super) threads: Option<u64>,
    /// When the process started, in seconds since 1970.
    pub(super) started: Option<f64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let mut process = Self::of_stat(&stat, rustix::param::clock_ticks_per_second() as f64, &boot);
        process.resident_bytes =
            process.resident_bytes.map(|pages| pages * rustix::param::page_size() as u64);
        // The listing itself has one open.
        process.open_fds = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count().saturating_sub(1) as u64);
        process.max_fds = rustix::process::getrlimit(Resource::Nofile).current;
        process
    }

    /// Reads `/proc/PID/stat` and the boot time of `/proc/stat`; proc(5). Resident memory comes in pages.
    fn of_stat(stat: &str, ticks: f64, boot: &str) -> Self {
        // The second field is the program's name in brackets, and may itself have any.
        let Some((_, fields)) = stat.rsplit_once(')') else { return Self::default() };
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let booted = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| (user + system) as f64 / ticks),
            threads: field(20),
            started: field(22).zip(booted).map(|(start, booted)| booted + start as f64 / ticks),
            virtual_bytes: field(23),
            resident_bytes: field(24),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_found_behind_a_name_with_brackets() {
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4 5 6 7 8 250 50 0 0 20 0 9 0 1000 4096000 123 18446744073709551615";
        let process = Process::of_stat(stat, 100.0, "cpu 1 2\nbtime 1700000000\n");
        assert_eq!(process.cpu_seconds, Some(3.0));
        assert_eq!(
            (process.threads, process.virtual_bytes, process.resident_bytes),
            (Some(9), Some(4_096_000), Some(123))
        );
        assert_eq!(process.started, Some(1_700_000_010.0));
    }

    #[test]
    fn this_process_has_memory_and_open_files() {
        let process = Process::read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000));
        assert!(process.open_fds.is_some_and(|fds| fds >= 3));
        assert!(process.started.is_some_and(|at| at > 1_000_000_000.0));
    }
}
