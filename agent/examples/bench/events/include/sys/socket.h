/* What bpftrace's tcpaccept.bt takes from this header: a machine without a C compiler has none. */
#define AF_INET 2
#define AF_INET6 10
