//! Standard output for people and for programs.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

/// Writes lines to standard output. Colour only on a terminal, and never with `NO_COLOR`
/// (<https://no-color.org>).
pub struct Output {
    colour: bool,
}

/// How a piece of text looks on a terminal.
#[derive(Clone, Copy)]
pub enum Look {
    /// Something went as it should.
    Good,
    /// A heading.
    Strong,
    /// Of less interest.
    Faint,
}

impl Output {
    /// The process's standard output.
    pub fn stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && io::stdout().is_terminal() }
    }

    /// Writes one line.
    pub fn line(&self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{text}")
    }

    /// Writes an empty line.
    pub fn gap(&self) -> io::Result<()> {
        writeln!(io::stdout().lock())
    }

    /// `text` in the given look, if this output has colours.
    pub fn look<T: fmt::Display>(&self, look: Look, text: T) -> impl fmt::Display + use<T> {
        Painted { look: self.colour.then_some(look), text }
    }
}

struct Painted<T> {
    look: Option<Look>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.look {
            None => return self.text.fmt(f),
            Some(Look::Good) => 32,
            Some(Look::Strong) => 1,
            Some(Look::Faint) => 2,
        };
        write!(f, "\x1b[{code}m")?;
        self.text.fmt(f)?;
        f.write_str("\x1b[0m")
    }
}
