//! Both ends of TLS, around one self-signed certificate.

use std::sync::{Arc, LazyLock};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

/// Both ends' configurations, around one self-signed certificate.
struct Tls {
    server: ServerConfig,
    client: ClientConfig,
    key: String,
}

/// A test that starts itself once more sets this to [`tls_key`] for the other process, so that each believes the
/// other.
pub const TLS_KEY: &str = "HTTP_TERMINATOR_TEST_KEY";

pub fn tls_key() -> &'static str {
    &TLS.key
}

static TLS: LazyLock<Tls> = LazyLock::new(|| {
    let pair = match std::env::var(TLS_KEY) {
        Ok(pem) => rcgen::KeyPair::from_pem(&pem).expect("another's key"),
        Err(_) => rcgen::KeyPair::generate().expect("a key can be made"),
    };
    let names = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let made = names.self_signed(&pair).expect("a certificate can be made");
    let key = PrivateKeyDer::try_from(pair.serialize_der()).expect("rcgen's key");
    let certificate = made.der().clone();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("it parses");
    let provider = Arc::new(ring::default_provider());
    let versions = "ring knows the default versions";
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("the key is the certificate's");
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect(versions)
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Every handshake is a whole one.
    client.resumption = Resumption::disabled();
    Tls {
        server,
        client,
        key: pair.serialize_pem(),
    }
});

/// Accepts handshakes for `localhost` and these application protocols.
pub fn tls_acceptor(alpn: &[&str]) -> TlsAcceptor {
    let mut config = TLS.server.clone();
    config.alpn_protocols = protocols(alpn);
    Arc::new(config).into()
}

/// A client's end of TLS, before its first byte; offers these application protocols.
pub fn tls_client(alpn: &[&str]) -> ClientConnection {
    let connection = ClientConnection::new(tls_config(alpn), localhost());
    connection.expect("the configuration is fine")
}

/// Both ends for early data (0-RTT): the acceptor offers it, and the client comes again with what it is given.
pub fn early_data() -> (TlsAcceptor, Arc<ClientConfig>) {
    let mut server = TLS.server.clone();
    server.max_early_data_size = 1024;
    let mut client = TLS.client.clone();
    client.resumption = Resumption::default();
    client.enable_early_data = true;
    (Arc::new(server).into(), Arc::new(client))
}

/// The first bytes of this client.
pub fn client_hello(tls: &mut ClientConnection) -> Vec<u8> {
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).expect("a vector takes it all");
    hello
}

pub(super) fn tls_config(alpn: &[&str]) -> Arc<ClientConfig> {
    let mut config = TLS.client.clone();
    config.alpn_protocols = protocols(alpn);
    Arc::new(config)
}

pub fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").expect("a name")
}

fn protocols(alpn: &[&str]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.as_bytes().to_vec()).collect()
}
