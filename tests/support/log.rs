//! What the crate logs, as lines.

use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// A layer that keeps the lines of this crate: level, and ` name=value` of each field.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<(Level, String)>>>);

impl Log {
    /// Listens on this thread: for tests on a runtime with one.
    pub fn here(&self) -> DefaultGuard {
        tracing::subscriber::set_default(tracing_subscriber::registry().with(self.clone()))
    }

    /// Those that are as loud, or louder.
    pub fn at_least(&self, level: Level) -> Vec<String> {
        self.those(|it, _| it <= level)
    }

    /// Those in which this occurs.
    pub fn with(&self, part: &str) -> Vec<String> {
        self.those(|_, line| line.contains(part))
    }

    fn those(&self, which: impl Fn(Level, &str) -> bool) -> Vec<String> {
        let lines = self.lines();
        let those = lines.iter().filter(|(level, line)| which(*level, line));
        those.map(|(_, line)| line.clone()).collect()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<(Level, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target().starts_with("http_terminator") {
            let level = *event.metadata().level();
            self.lines().push((level, line(event)));
        }
    }
}

/// Of one event.
pub fn line(event: &Event<'_>) -> String {
    struct Line(String);
    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            write!(self.0, " {field}={value:?}").expect("a string takes it all");
        }
    }
    let mut line = Line(event.metadata().level().to_string());
    event.record(&mut line);
    line.0
}
