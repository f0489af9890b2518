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

/// Connections that the limit on open files allows: to one worker, and to all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub each: usize,
    pub all: usize,
}

/// What a limit of `files_max` allows. Who shares a table shares its room, whatever each has of it.
pub fn room(files_max: usize, workers: usize, own_files: bool) -> Room {
    if own_files {
        Room { each: files_max.saturating_sub(FILES_RESERVE).max(1), all: usize::MAX }
    } else {
        Room { each: usize::MAX, all: files_max.saturating_sub(FILES_RESERVE * workers).max(1) }
    }
}

impl Room {
    /// The most that `workers` have when all are full.
    pub fn most(self, workers: usize) -> usize {
        self.each.saturating_mul(workers).min(self.all)
    }
}

/// Standard deviations above its share that a worker has room for: the kernel's hash spreads connections at random.
const DEVIATIONS: f64 = 4.0;

/// The most that a worker has, when `connections` fall on workers at random.
fn most_of_one(connections: usize, workers: usize) -> usize {
    if workers == 1 {
        return connections;
    }
    let share = connections as f64 / workers as f64;
    (share + DEVIATIONS * share.sqrt()).ceil() as usize
}

/// Connections that find a place under a limit of `files_max`, however they fall on workers.
pub fn held(files_max: usize, workers: usize, own_files: bool) -> usize {
    let reserve = if own_files { FILES_RESERVE } else { FILES_RESERVE * workers };
    let files = files_max.saturating_sub(reserve);
    if !own_files || workers == 1 {
        return files;
    }
    // `most_of_one`, turned around.
    let root = (files as f64 + DEVIATIONS * DEVIATIONS / 4.0).sqrt() - DEVIATIONS / 2.0;
    let mut connections = (root * root * workers as f64).floor() as usize;
    while connections > 0 && most_of_one(connections, workers) > files {
        connections -= 1;
    }
    connections
}

/// The limit on open files under which each of `connections` finds a place.
pub fn files_needed(connections: usize, workers: usize, own_files: bool) -> usize {
    if own_files {
        most_of_one(connections, workers) + FILES_RESERVE
    } else {
        connections + FILES_RESERVE * workers
    }
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
        for (connections, workers, own, needed) in [
            (1_000, 1, true, 1_064),
            (1_000, 1, false, 1_064),
            (1_001, 2, false, 1_129),
            // 500 and four times 22.4.
            (1_000, 2, true, 654),
            (7, 3, true, 73),
            (1_000_000, 4, true, 252_064),
            (0, 2, true, 64),
        ] {
            assert_eq!(files_needed(connections, workers, own), needed, "{connections} {workers} {own}");
            assert!(held(needed, workers, own) >= connections, "{connections} {workers} {own}");
            if connections > 0 {
                assert!(held(needed - 1, workers, own) < connections, "{connections} {workers} {own}");
            }
        }
        assert_eq!(held(64, 4, true), 0);
        assert_eq!(held(100, 2, false), 0);
    }

    #[test]
    fn who_shares_a_table_shares_its_room() {
        assert_eq!(room(1_064, 2, true), Room { each: 1_000, all: usize::MAX });
        assert_eq!(room(1_064, 2, true).most(2), 2_000);
        assert_eq!(room(1_064, 2, false), Room { each: usize::MAX, all: 936 });
        assert_eq!(room(1_064, 2, false).most(2), 936);
        assert_eq!(room(10, 2, true).most(2), 2, "somebody is served");
    }
}
