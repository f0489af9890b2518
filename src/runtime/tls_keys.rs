//! Small keys for TLS 1.3 (RFC 8446 §5.2). rustls's own keep a cipher ready to be used, 1.2 KB for a connection's two
//! directions; these keep the key, and make the cipher of it for each record. That is meant for
//! connections that wait, as most do; what it costs a delivery `bench/run tls` is there to tell.
//! Owns how a record is encrypted with ring. rustls keeps all else: sequence numbers, limits, renewal. TLS 1.2 keeps its
//! ciphers ready.

use std::sync::OnceLock;

use ring::aead;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, Nonce,
    OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use rustls::crypto::{CryptoProvider, ring as rustls_ring};
use rustls::{
    CipherSuite, CipherSuiteCommon, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion,
    SupportedCipherSuite, Tls13CipherSuite,
};

/// What rustls does cryptography with: ring's, TLS 1.3 with small keys.
pub fn provider() -> CryptoProvider {
    let mut provider = rustls_ring::default_provider();
    for suite in &mut provider.cipher_suites {
        *suite = with_small_keys(*suite);
    }
    provider
}

/// The same cipher suite with small keys, if they are made for it.
fn with_small_keys(suite: SupportedCipherSuite) -> SupportedCipherSuite {
    static SMALL: [OnceLock<Tls13CipherSuite>; 3] = [const { OnceLock::new() }; 3];
    static AES_128: SmallKeys = SmallKeys(&aead::AES_128_GCM);
    static AES_256: SmallKeys = SmallKeys(&aead::AES_256_GCM);
    static CHACHA20: SmallKeys = SmallKeys(&aead::CHACHA20_POLY1305);
    let Some(of) = suite.tls13() else { return suite };
    let (place, algorithm) = match of.common.suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => (&SMALL[0], &AES_128),
        CipherSuite::TLS13_AES_256_GCM_SHA384 => (&SMALL[1], &AES_256),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => (&SMALL[2], &CHACHA20),
        _ => return suite,
    };
    SupportedCipherSuite::Tls13(place.get_or_init(|| Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: of.common.suite,
            hash_provider: of.common.hash_provider,
            confidentiality_limit: of.common.confidentiality_limit,
        },
        hkdf_provider: of.hkdf_provider,
        aead_alg: algorithm,
        quic: None,
    }))
}

/// An algorithm whose ciphers are made when they are needed.
struct SmallKeys(&'static aead::Algorithm);

impl Tls13AeadAlgorithm for SmallKeys {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(SmallKey { algorithm: self.0, key, iv })
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(SmallKey { algorithm: self.0, key, iv })
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    /// Keys are given to nobody.
    fn extract_keys(&self, _: AeadKey, _: Iv) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Err(UnsupportedOperationError)
    }
}

/// The key of one direction; overwritten when it is dropped.
struct SmallKey {
    algorithm: &'static aead::Algorithm,
    key: AeadKey,
    iv: Iv,
}

impl SmallKey {
    fn cipher(&self) -> Result<aead::LessSafeKey, Error> {
        let key = aead::UnboundKey::new(self.algorithm, self.key.as_ref());
        key.map(aead::LessSafeKey::new).map_err(|_| Error::General("a key of the wrong length".into()))
    }

    /// Each number is used once: rustls counts them, and never starts anew with the same key.
    fn nonce(&self, number: u64) -> aead::Nonce {
        aead::Nonce::assume_unique_for_key(Nonce::new(&self.iv, number).0)
    }
}

impl MessageEncrypter for SmallKey {
    fn encrypt(
        &mut self,
        record: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let bytes = self.encrypted_payload_len(record.payload.len());
        let mut payload = PrefixedPayload::with_capacity(bytes);
        payload.extend_from_chunks(&record.payload);
        payload.extend_from_slice(&record.typ.to_array());
        let about = aead::Aad::from(make_tls13_aad(bytes));
        self.cipher()?
            .seal_in_place_append_tag(self.nonce(number), about, &mut payload)
            .map_err(|_| Error::EncryptError)?;
        // The type and version that stand outside are always these (§5.2).
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    /// With the type that stands inside, and the tag.
    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + self.algorithm.tag_len()
    }
}

impl MessageDecrypter for SmallKey {
    fn decrypt<'a>(
        &mut self,
        mut record: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let payload = &mut record.payload;
        let about = aead::Aad::from(make_tls13_aad(payload.len()));
        let plain = self
            .cipher()?
            .open_in_place(self.nonce(number), about, payload)
            .map_err(|_| Error::DecryptError)?;
        let bytes = plain.len();
        payload.truncate(bytes);
        record.into_tls13_unpadded_message()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_small() {
        assert!(size_of::<SmallKey>() <= 64, "{}", size_of::<SmallKey>());
    }

    /// Those of TLS 1.3, and they alone.
    #[test]
    fn every_suite_of_tls_1_3_has_small_keys() {
        let (small, usual) = (provider().cipher_suites, rustls_ring::default_provider().cipher_suites);
        assert_eq!(small.len(), usual.len());
        for (small, usual) in small.iter().zip(&usual) {
            assert_eq!(small.suite(), usual.suite());
            let (Some(small), Some(usual)) = (small.tls13(), usual.tls13()) else { continue };
            assert!(small.quic.is_none() && usual.quic.is_some(), "{:?}", small.common.suite);
            assert_eq!(small.common.confidentiality_limit, usual.common.confidentiality_limit);
            assert_eq!(small.aead_alg.key_len(), usual.aead_alg.key_len());
        }
    }
}
