//! What the limit on open files allows: whether workers get tables of their own, and the connections of each.
//! Owns the arithmetic, for the node that starts and for `pushline doctor`. Never asks the machine.

use super::settings::FilesChoice;

/// Descriptors that a worker needs for itself: listeners, rings, eventfds, logs.
pub const FILES_RESERVE: usize = 64;

/// Whether each worker gets a table of its own, when a table may hold `files_max`.
pub fn own_files(choice: FilesChoice, files_max: usize, workers: usize, connections: usize) -> bool {
    match choice {
        FilesChoice::PerWorker => true,
        FilesChoice::Shared => false,
        FilesChoice::Auto => workers > 1 && files_max < connections + FILES_RESERVE * workers,
    }
}

/// Connections of one worker that the limit on open files allows.
pub fn by_files(files_max: usize, workers: usize, own_files: bool) -> usize {
    let files = if own_files { files_max } else { files_max / workers };
    files.saturating_sub(FILES_RESERVE)
}

/// The limit on open files at which each worker has its share.
pub fn files_needed(connections: usize, workers: usize, own_files: bool) -> usize {
    let a_worker = connections.div_ceil(workers) + FILES_RESERVE;
    if own_files { a_worker } else { a_worker * workers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_divided_where_one_is_too_small() {
        for (choice, files_max, workers, want) in [
            (FilesChoice::Auto, 1_127, 2, true),
            (FilesChoice::Auto, 1_128, 2, false),
            (FilesChoice::Auto, 10, 1, false),
            (FilesChoice::PerWorker, 1_000_000, 2, true),
            (FilesChoice::Shared, 10, 2, false),
        ] {
            assert_eq!(
                own_files(choice, files_max, workers, 1_000),
                want,
                "{choice:?} {files_max} {workers}"
            );
        }
    }

    #[test]
    fn what_is_needed_is_what_is_enough() {
        for (connections, workers, own) in [(1_000, 2, true), (1_001, 2, false), (7, 3, true), (1, 1, false)]
        {
            let needed = files_needed(connections, workers, own);
            let share = connections.div_ceil(workers);
            assert!(by_files(needed, workers, own) >= share, "{connections} {workers} {own}");
            assert!(by_files(needed - 1, workers, own) < share, "{connections} {workers} {own}");
        }
    }
}
