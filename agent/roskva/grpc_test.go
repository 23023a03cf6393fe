package roskva

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/gladsheim/gladsheim/agent/service"
)

// reply is what a server says, in frames; serving is what one that is well answers.
type reply func(f *http2.Framer)

var serving = []byte{0, 0, 0, 0, 2, 8, 1}

func headers(end bool, pairs ...string) reply {
	return func(f *http2.Framer) {
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for i := 0; i < len(pairs); i += 2 {
			_ = encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: theStream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	}
}

func data(bytes []byte) reply {
	return func(f *http2.Framer) { _ = f.WriteData(theStream, false, bytes) }
}

func frames(replies ...reply) []byte {
	var text bytes.Buffer
	f := http2.NewFramer(&text, nil)
	for _, r := range replies {
		r(f)
	}
	return text.Bytes()
}

var (
	settings = func(f *http2.Framer) { _ = f.WriteSettings() }
	ping     = func(f *http2.Framer) { _ = f.WritePing(false, [8]byte{7}) }
	ok       = headers(false, ":status", "200", "content-type", "application/grpc")
	done     = headers(true, "grpc-status", "0")
)

var replies = []struct {
	says []byte
	want string // the error, "" for none
}{
	{frames(settings, ok, data(serving), done), ""},
	{frames(settings, ping, ok, data(serving[:3]), ping, data(serving[3:]), done), ""},
	{frames(settings, headers(true, ":status", "200", "grpc-status", "5", "grpc-message", "no%20such")), "no such"},
	{frames(settings, headers(true, ":status", "404")), "HTTP status 404"},
	{frames(settings, ok, data(serving), headers(true, "x", "y")), "without a status of gRPC"},
	{frames(settings, ok, done), "no message"},
	{frames(settings, ok, data([]byte{1, 0, 0, 0, 2, 8, 1}), done), "no message"},
	{frames(settings, ok, data([]byte{0, 0, 0, 0, 9, 8, 1}), done), "no message"},
	{frames(settings, ok, data([]byte{0, 0, 0, 0, 2, 8, 2}), done), "NOT_SERVING"},
	{frames(settings, ok, data([]byte{0, 0, 0, 0, 1, 8}), done), "no health"},
	{frames(settings, func(f *http2.Framer) { _ = f.WriteRSTStream(theStream, http2.ErrCodeRefusedStream) }), "REFUSED_STREAM"},
	{frames(settings, func(f *http2.Framer) { _ = f.WriteGoAway(0, http2.ErrCodeEnhanceYourCalm, []byte("later")) }), "ENHANCE_YOUR_CALM later"},
	{frames(settings, func(f *http2.Framer) { _ = f.WriteGoAway(theStream, http2.ErrCodeNo, nil) }, ok, data(serving), done), ""},
	{[]byte("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "looked like an HTTP/1.1 header"},
	{frames(settings, ok), "EOF"},
	{nil, "EOF"},
}

// TestGRPCReplies: what a server may say to a check, and what that comes to.
func TestGRPCReplies(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	says := make(chan []byte, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 1024)) // the call
			_, _ = conn.Write(<-says)
			_ = conn.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
	}()
	for _, r := range replies {
		go func() {
			says <- r.says
			says <- r.says
		}()
		err := ask(t, 10*time.Second, service.Check{Type: service.CheckGRPC, Address: l.Addr().String()})
		if r.want == "" {
			require.NoError(t, err, "%q", r.says)
		} else {
			require.ErrorContains(t, err, r.want, "%q", r.says)
		}
	}
}

// FuzzGRPCReply has a server answer with anything, in pieces of any length: that ends, is the
// same as in one, and is well only by a message that says so.
func FuzzGRPCReply(f *testing.F) {
	for _, r := range replies {
		f.Add(r.says, 1)
		f.Add(r.says, 20)
	}
	asked, err := grpcServer(service.Check{Type: service.CheckGRPC, Address: "127.0.0.1:1"})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, says []byte, piece int) {
		want, got := heard(t, asked, says, piece)
		if want == nil {
			require.NoError(t, got)
			a, err := readGRPC(says)
			require.NoError(t, err)
			require.Equal(t, "200", a.status)
			require.GreaterOrEqual(t, len(a.message), len(serving))
		} else {
			require.Error(t, got, "in one piece: %v", want)
		}
	})
}
