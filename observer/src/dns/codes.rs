//! Numbers of DNS messages that are label values of series: few, whatever a message says.

/// Declares an enum of label values for known numbers, and `Other`.
macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// Any other number.
            Other,
        }

        impl $name {
            /// All of them, in order.
            pub const ALL: &[Self] = &[$(Self::$variant,)* Self::Other];

            /// From the number in a message.
            #[must_use]
            pub const fn of(number: u16) -> Self {
                match number {
                    $($number => Self::$variant,)*
                    _ => Self::Other,
                }
            }

            /// The label value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other => "other",
                }
            }
        }
    };
}

codes! {
    /// The type of record that was asked for (IANA, "Resource Record (RR) TYPEs").
    Qtype {
        /// An IPv4 address.
        A = 1, "A";
        /// A name server.
        Ns = 2, "NS";
        /// The name that stands for this one.
        Cname = 5, "CNAME";
        /// The start of a zone.
        Soa = 6, "SOA";
        /// A name for an address.
        Ptr = 12, "PTR";
        /// A mail exchange.
        Mx = 15, "MX";
        /// Text.
        Txt = 16, "TXT";
        /// An IPv6 address.
        Aaaa = 28, "AAAA";
        /// A service's host and port.
        Srv = 33, "SRV";
        /// A service's binding.
        Svcb = 64, "SVCB";
        /// A web server's binding.
        Https = 65, "HTTPS";
        /// Whatever there is.
        Any = 255, "ANY";
    }
}

codes! {
    /// How a question was answered (IANA, "DNS RCODEs").
    Rcode {
        /// All is well, though there may be no record.
        NoError = 0, "NOERROR";
        /// The server did not understand.
        FormErr = 1, "FORMERR";
        /// The server could not find out.
        ServFail = 2, "SERVFAIL";
        /// There is no such name.
        NxDomain = 3, "NXDOMAIN";
        /// The server cannot do that.
        NotImp = 4, "NOTIMP";
        /// The server will not.
        Refused = 5, "REFUSED";
    }
}
