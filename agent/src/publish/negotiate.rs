//! What a client accepts (RFC 9110, section 12.5): the form of a scrape, and whether gzip. Pure.

use super::exposition::Format;
use crate::metric::HistogramForm;

/// The form for an `Accept` header; several of them are joined by commas. `histograms` is what
/// protobuf has.
///
/// OpenMetrics when nothing tells otherwise, or nothing of ours is accepted. Protobuf only for a
/// client that names it, and then also before what it accepts as much: it alone carries native
/// histograms. A browser, which asks for text/html, gets plain text: it shows that, and would save
/// the others as a file.
#[must_use]
pub fn format(accept: &str, histograms: HistogramForm) -> Format {
    let ranges: Vec<_> = accept.split(',').map(Range::parse).collect();
    let protobuf = quality(&ranges, [|r| r.is_protobuf()]);
    let openmetrics =
        quality(&ranges, [|r| r.is_openmetrics(), |r| r.is("application/*"), |r| r.is("*/*")]);
    let prometheus = quality(&ranges, [|r| r.is_prometheus(), |r| r.is("text/*"), |r| r.is("*/*")]);
    if 0.0 < protobuf && openmetrics.max(prometheus) <= protobuf {
        Format::Protobuf(histograms)
    } else if openmetrics < prometheus {
        Format::Prometheus
    } else {
        Format::OpenMetrics
    }
}

/// Whether gzip may be sent, by an `Accept-Encoding` header.
#[must_use]
pub fn gzip(accept_encoding: &str) -> bool {
    let ranges: Vec<_> = accept_encoding.split(',').map(Range::parse).collect();
    0.0 < quality(&ranges, [|r| r.is("gzip"), |r| r.is("x-gzip"), |r| r.is("*")])
}

/// The weight of the first rule that any range fits; 0 if there is none.
fn quality<const N: usize>(ranges: &[Range<'_>], rules: [fn(&Range<'_>) -> bool; N]) -> f32 {
    let fits = |rule: fn(&Range<'_>) -> bool| {
        ranges.iter().filter(|&range| rule(range)).map(|range| range.quality).reduce(f32::max)
    };
    rules.into_iter().find_map(fits).unwrap_or(0.0)
}

/// One element of an Accept header.
struct Range<'a> {
    name: &'a str,
    version: Option<&'a str>,
    /// Of protobuf: the message.
    proto: Option<&'a str>,
    /// Of protobuf: what is around the messages.
    encoding: Option<&'a str>,
    /// `0.0..=1.0`; 1 where it is not given or no number.
    quality: f32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let mut range = Self { name, version: None, proto: None, encoding: None, quality: 1.0 };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let (key, value) = (key.trim(), value.trim().trim_matches('"'));
            if key.eq_ignore_ascii_case("q") {
                let quality = value.parse().ok().filter(|q: &f32| q.is_finite());
                range.quality = quality.unwrap_or(1.0).clamp(0.0, 1.0);
            } else if key.eq_ignore_ascii_case("version") {
                range.version = Some(value);
            } else if key.eq_ignore_ascii_case("proto") {
                range.proto = Some(value);
            } else if key.eq_ignore_ascii_case("encoding") {
                range.encoding = Some(value);
            }
        }
        range
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    fn is_protobuf(&self) -> bool {
        self.is("application/vnd.google.protobuf")
            && self.proto.is_none_or(|proto| proto == "io.prometheus.client.MetricFamily")
            && self.encoding.is_none_or(|encoding| encoding == "delimited")
    }

    fn is_openmetrics(&self) -> bool {
        self.is("application/openmetrics-text")
            && self.version.is_none_or(|version| ["1.0.0", "0.0.1"].contains(&version))
    }

    fn is_prometheus(&self) -> bool {
        self.is("text/html")
            || self.is("text/plain") && self.version.is_none_or(|version| version == "0.0.4")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Format) {
        assert_eq!(format(accept, HistogramForm::Native), expected, "{accept:?}");
    }

    const PROTOBUF: Format = Format::Protobuf(HistogramForm::Native);

    #[test]
    fn openmetrics_unless_something_else_is_preferred() {
        check("", Format::OpenMetrics);
        check("*/*", Format::OpenMetrics);
        check("application/*", Format::OpenMetrics);
        check("application/openmetrics-text", Format::OpenMetrics);
        check("application/json", Format::OpenMetrics);
        check("text/plain;q=0.5, */*;q=0.1, application/openmetrics-text", Format::OpenMetrics);
        check("application/openmetrics-text; version=2.0.0, text/plain", Format::Prometheus);
        check("application/openmetrics-text;q=0.2, text/plain;q=0.8", Format::Prometheus);
        check("application/openmetrics-text;q=0, */*", Format::Prometheus);
        check("text/plain", Format::Prometheus);
        check("TEXT/Plain; Version=\"0.0.4\"", Format::Prometheus);
        check("text/*;q=0.3", Format::Prometheus);
        check("text/plain;q=x", Format::Prometheus);
    }

    #[test]
    fn protobuf_where_it_is_named_and_nothing_is_liked_more() {
        check("application/vnd.google.protobuf", PROTOBUF);
        check("application/vnd.google.protobuf, */*", PROTOBUF);
        check("application/openmetrics-text, application/vnd.google.protobuf", PROTOBUF);
        check("application/vnd.google.protobuf;q=0.4, text/plain;q=0.3", PROTOBUF);
        check("application/vnd.google.protobuf;q=0.4, text/plain;q=0.5", Format::Prometheus);
        check("application/vnd.google.protobuf;q=0, text/plain;q=0.5", Format::Prometheus);
        check("application/vnd.google.protobuf;q=0", Format::OpenMetrics);
        check("application/vnd.google.protobuf;proto=a.B;encoding=delimited", Format::OpenMetrics);
        check("application/vnd.google.protobuf;encoding=text, text/*;q=0.1", Format::Prometheus);
    }

    #[test]
    fn what_real_clients_send() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
            version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        check(prometheus_2, Format::OpenMetrics);
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
            application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
            escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(prometheus_3, Format::OpenMetrics);
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
            encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        check(native, PROTOBUF);
        let native_3 = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
            encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;\
            escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(native_3, PROTOBUF);
        let firefox = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        check(firefox, Format::Prometheus);
    }

    #[test]
    fn gzip_only_where_it_is_accepted() {
        for (accept_encoding, expected) in [
            ("", false),
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.0, *", false),
            ("*", true),
            ("*;q=0", false),
            ("identity", false),
            ("br, x-gzip", true),
        ] {
            assert_eq!(gzip(accept_encoding), expected, "{accept_encoding:?}");
        }
    }
}
