//! Refusals to operators: problem details, like those to clients.

use axum::extract::rejection::QueryRejection;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::proto::http::problem::{CONTENT_TYPE, Problem};

/// One refusal: what was wrong and what would be right.
#[derive(Debug)]
pub struct Refused {
    status: StatusCode,
    detail: String,
}

impl Refused {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub fn bad(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(128 + self.detail.len());
        Problem::new(self.status.as_u16(), &self.detail).write_json(&mut body);
        let fields = [(header::CONTENT_TYPE, CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
        let mut response = (self.status, fields, body).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = axum::http::HeaderValue::from_static("Bearer realm=\"pushline admin\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

pub async fn nothing_here(uri: Uri) -> Refused {
    let path = uri.path();
    Refused::new(
        StatusCode::NOT_FOUND,
        format!(
            "nothing is at {path}; there are /healthz, /readyz, /metrics, /channels, /connections, /revocations, /trace \
             (docs/admin.md)"
        ),
    )
}

/// The field `Allow` is the router's.
pub async fn not_allowed(method: Method, uri: Uri) -> Refused {
    let path = uri.path();
    Refused::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{path} does not take {method}; Allow says what it takes"),
    )
}
