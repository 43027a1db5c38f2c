//! Where a test's code runs: beside its runtime, or once for each of many side by side.

use std::fmt;

/// Runs blocking code, such as a [`RawClient`], beside the test's runtime; its panics are ours.
pub async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(f).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => panic!("the runtime ended under blocking test code: {error}"),
    }
}

/// Runs `f` for each of these side by side, on a thread each; what panicked is named.
#[track_caller]
pub fn side_by_side<T: Copy + fmt::Debug + Send>(
    all: impl IntoIterator<Item = T>,
    f: impl Fn(T) + Sync,
) {
    let f = &f;
    let failed: Vec<_> = std::thread::scope(|scope| {
        let threads = all.into_iter().map(|it| (it, scope.spawn(move || f(it))));
        let threads: Vec<_> = threads.collect();
        let failed = threads.into_iter().filter_map(|(it, thread)| {
            thread.join().err()?;
            Some(format!("{it:?}"))
        });
        failed.collect()
    });
    assert!(failed.is_empty(), "failed: {}", failed.join(", "));
}

/// The same, each with a runtime of two workers of its own, which `f` blocks none of.
#[track_caller]
pub fn each<T: Copy + fmt::Debug + Send>(
    all: impl IntoIterator<Item = T>,
    f: impl AsyncFn(T) + Sync,
) {
    side_by_side(all, |it| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.expect("threads can be had").block_on(f(it));
    });
}
