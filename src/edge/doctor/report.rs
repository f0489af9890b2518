//! What was found on a machine, and how it is told: findings, with what each allows and its remedy; the whole, for people
//! and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Costs something, or could not be read; it stops nobody by itself.
    Note,
    /// Fewer connections than wanted.
    Stop,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub level: Level,
    /// Connections that this alone allows; none when it is no matter of numbers, or unknown.
    pub holds: Option<usize>,
    pub says: String,
    /// What to do, exactly; none when all is well.
    pub remedy: Option<String>,
}

impl Finding {
    /// A limit that allows `holds` connections (`usize::MAX`: any number); the remedy counts when that is fewer than wanted.
    pub(super) fn limit(
        wanted: usize,
        name: &'static str,
        holds: usize,
        says: String,
        remedy: String,
    ) -> Self {
        let enough = holds >= wanted;
        let level = if enough { Level::Ok } else { Level::Stop };
        let holds = (holds != usize::MAX).then_some(holds);
        Self { name, level, holds, says, remedy: (!enough).then_some(remedy) }
    }

    pub(super) fn ok(name: &'static str, says: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, holds: None, says: says.into(), remedy: None }
    }

    pub(super) fn unread(name: &'static str, remedy: &str) -> Self {
        let says = "cannot be read here".into();
        Self { name, level: Level::Note, holds: None, says, remedy: Some(remedy.into()) }
    }

    /// Something that is worth knowing, whatever the numbers say.
    pub(super) fn noted(mut self) -> Self {
        match self.level {
            Level::Stop => self.level = Level::Note,
            // What stops nobody bounds nothing.
            Level::Ok | Level::Note => self.holds = None,
        }
        self
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub connections: usize,
    /// Connections that this machine holds as it is, by what was read.
    pub holds: usize,
    pub workers: usize,
    pub files: &'static str,
    /// How many findings would stop it.
    pub stops: usize,
    pub findings: Vec<Finding>,
}

impl Report {
    pub fn stopping(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.level == Level::Stop)
    }
}

/// For people: a line for each finding, its remedy below.
impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, workers, files, stops, .. } = self;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        writeln!(
            f,
            "{} connections, {workers} worker{}, file tables {files}",
            Count(*connections),
            plural(*workers)
        )?;
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Stop => "STOP",
            };
            writeln!(f, "{level:<5} {finding}")?;
        }
        match stops {
            0 => writeln!(f, "nothing found that would stop {} connections", Count(*connections)),
            _ => writeln!(
                f,
                "{stops} thing{} would stop {} connections: as it is, it is good for {}. `tuning/apply.sh --connections \
                 {connections}` shows what sysctl and limits can do",
                plural(*stops),
                Count(*connections),
                Count(self.holds)
            ),
        }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.says)?;
        if let (Some(holds), Level::Note | Level::Stop) = (self.holds, self.level) {
            write!(f, "; enough for {}", Count(holds))?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n      -> {remedy}"),
            None => Ok(()),
        }
    }
}

/// A number with its thousands set apart.
pub(super) struct Count(pub usize);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A size, in MiB: finer is of no use here.
pub(super) struct Bytes(pub usize);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", Count(self.0.div_ceil(1 << 20)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (number, want) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")]
        {
            assert_eq!(Count(number).to_string(), want);
        }
        assert_eq!(Bytes(1).to_string(), "1 MiB");
    }
}
