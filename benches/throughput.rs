//! Wall time of requests beside peers: criterion's figures for those who have a quiet machine.
//!
//! `cargo bench --bench throughput`: a server on 1 and on 2 threads, as many clients as threads, each
//! with a connection of its own. What is measured is the time for a request of each client.
#![allow(missing_docs, clippy::disallowed_methods)] // not the library

#[allow(dead_code, reason = "the table's, of which a part is needed here")]
#[path = "table/load.rs"]
mod load;
#[allow(dead_code, reason = "as above")]
#[path = "table/servers.rs"]
mod servers;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use crate::servers::{Given, SERVERS};

criterion_group! {
    name = throughput;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = kept_alive
}
criterion_main!(throughput);

fn kept_alive(criterion: &mut Criterion) {
    for threads in [1, 2] {
        let mut group = criterion.benchmark_group(format!("{threads} threads"));
        for server in SERVERS {
            let (addr, running) = load::start(server, Given::Hello, threads);
            group.bench_function(BenchmarkId::from_parameter(server), |bencher| {
                bencher.iter_custom(|n| {
                    let n = usize::try_from(n).expect("not so many");
                    load::ask_at_once(addr, threads, n)
                });
            });
            running.end();
        }
    }
}
