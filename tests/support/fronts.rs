//! The one list of front ends. What serves through them is in `server.rs`.
//!
//! A file has a list of its own only where what is served is no router: `grpc.rs`, `websocket.rs`; where it sets what
//! else the server does: `close_websockets.rs`, `versions.rs`; or holds on to the server's own future: `axum_serve.rs`.

/// The ways to serve an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// `Terminator::serve` with a router, over TCP.
    Serve,
    /// The same with hyper-util's builder.
    ServeAuto,
    /// That one told to speak HTTP/1 only.
    ServeHttp1,
    /// HTTP/2 only.
    ServeHttp2,
    /// [`Serve`](Self::Serve) over a Unix socket.
    ServeUnix,
    /// `Terminator::serve` with a tower service that is not axum's.
    HyperServe,
    /// `Terminator::serve` over TLS, with the application protocols that `Serve::tls` offers.
    #[cfg(feature = "rustls")]
    ServeTls,
    /// `Terminator::listen` and `Connection::serve` in an accept loop of the user's own.
    OwnLoop,
    /// The same with hyper-util's builder.
    OwnLoopAuto,
    /// [`OwnLoop`](Self::OwnLoop) over TLS, by `Connection::handshake`.
    OwnLoopTls,
    /// [`OwnLoopAuto`](Self::OwnLoopAuto) with a TLS handshake of the user's own.
    OwnLoopAutoTls,
    /// `Terminator::listen`, `Connection::service` and `Connection::watch` on a connection of hyper's.
    Watch,
    /// `axum::serve` on a tracked listener.
    #[cfg(feature = "axum")]
    Axum,
    /// tonic's own server on a tracked listener.
    #[cfg(feature = "tonic")]
    Tonic,
}

impl FrontEnd {
    /// Those with all guarantees, without TLS.
    pub fn all() -> [Self; 5] {
        [
            Self::Serve,
            Self::ServeUnix,
            Self::OwnLoop,
            Self::OwnLoopAuto,
            Self::HyperServe,
        ]
    }

    /// Those over TLS.
    pub fn tls() -> Vec<Self> {
        [
            #[cfg(feature = "rustls")]
            Self::ServeTls,
            Self::OwnLoopTls,
            Self::OwnLoopAutoTls,
        ]
        .to_vec()
    }

    /// Both.
    pub fn all_and_tls() -> Vec<Self> {
        [&Self::all()[..], &Self::tls()].concat()
    }

    /// Those that see bytes and requests, and whose connections can be had: for `start_known`.
    pub fn seeing() -> Vec<Self> {
        [
            Self::Serve,
            Self::ServeAuto,
            #[cfg(feature = "rustls")]
            Self::ServeTls,
            Self::OwnLoop,
            Self::OwnLoopAuto,
            Self::OwnLoopTls,
        ]
        .to_vec()
    }

    /// All whose connections can be had.
    pub fn at_hand() -> Vec<Self> {
        [&Self::seeing()[..], &[Self::Watch]].concat()
    }

    pub fn is_tls(self) -> bool {
        match self {
            #[cfg(feature = "rustls")]
            Self::ServeTls => true,
            Self::OwnLoopTls | Self::OwnLoopAutoTls => true,
            _ => false,
        }
    }
}

/// A test for each of these functions over each of these front ends, in a module of its own.
macro_rules! over_front_ends {
    (@list [$($(#[$meta:meta])* $module:ident $front:ident,)*] $tests:tt) => {
        $($(#[$meta])* over_front_ends! { @one $module $front $tests })*
    };
    (@one $module:ident $front:ident { $($test:ident,)* }) => {
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::FrontEnd::$front).await;
            })*
        }
    };
    ([$($fronts:tt)*] $($tests:tt)*) => {
        over_front_ends! { @list [$($fronts)*] { $($tests)* } }
    };
}
pub(crate) use over_front_ends;
