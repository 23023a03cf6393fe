package roskva

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/gladsheim/gladsheim/agent/service"
)

// asServer has this program be the one that checks ask.
const asServer = "GLADSHEIM_BENCH_SERVER"

// serve tells where it listens for TCP, HTTP and gRPC, and ends with its standard input.
func serve() {
	var listeners [3]net.Listener
	for i := range listeners {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		listeners[i] = l
	}
	go func() {
		for {
			conn, err := listeners[0].Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	go func() {
		_ = http.Serve(listeners[1], http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	}()
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	go func() { _ = rpc.Serve(listeners[2]) }()
	fmt.Println(listeners[0].Addr(), listeners[1].Addr(), listeners[2].Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// asked are checks of a server that is another process, so that what it uses is not
// counted.
func asked(b *testing.B) []service.Check {
	stdin, hold, err := os.Pipe()
	require.NoError(b, err)
	defer stdin.Close()
	told, stdout, err := os.Pipe()
	require.NoError(b, err)
	defer told.Close()
	p, err := os.StartProcess("/proc/self/exe", os.Args[:1], &os.ProcAttr{Env: append(os.Environ(), asServer+"=1"), Files: []*os.File{stdin, stdout, os.Stderr}})
	require.NoError(b, err)
	stdout.Close()
	b.Cleanup(func() {
		hold.Close()
		_, err := p.Wait()
		require.NoError(b, err)
	})
	line, err := bufio.NewReader(told).ReadString('\n')
	require.NoError(b, err)
	at := strings.Fields(line)
	return []service.Check{
		{Type: service.CheckTCP, Address: at[0]},
		{Type: service.CheckHTTP, URL: "http://" + at[1]},
		{Type: service.CheckGRPC, Address: at[2]},
	}
}

// BenchmarkAsk is one check, in CPU time of who asks.
func BenchmarkAsk(b *testing.B) {
	for _, check := range asked(b) {
		b.Run(check.Type.String(), func(b *testing.B) {
			question, _ := prepare(check, nil)
			before := cpu(b)
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, question(b.Context()))
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkTenThousand is what 10,000 checks every 5 s use of two cores.
func BenchmarkTenThousand(b *testing.B) {
	const many, interval, window = 10_000, 5 * time.Second, 20 * time.Second
	for _, check := range asked(b) {
		check.Interval, check.Timeout, check.Threshold = interval, interval, 3
		b.Run(check.Type.String(), func(b *testing.B) {
			r := New(func(service.Name, service.Health) {})
			defer r.Close()
			for n := range many { // as they are spread after a while
				defer r.Attend(service.MustName(fmt.Sprintf("web-%d", n)), check, nil, noExcuse, func() {})("")
				if n%100 == 0 {
					<-time.After(interval * 100 / many)
				}
			}
			<-time.After(2 * interval)
			for b.Loop() {
				before, began := cpu(b), time.Now()
				<-time.After(window)
				b.ReportMetric(100*float64(cpu(b)-before)/float64(2*time.Since(began)), "%of-two-cores")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpu is the CPU time that this process has used.
func cpu(b *testing.B) time.Duration {
	var used syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
