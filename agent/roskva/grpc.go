package roskva

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
)

const (
	// theStream is the only one of a connection: a client's first.
	theStream = 1
	// grpcHead is what comes before a message: whether it is compressed, and its length.
	grpcHead = 1 + 4
	// maxHeaders is as much of headers as is read.
	maxHeaders = 16 << 10
)

// askGRPC calls grpc.health.v1.Health/Check. It speaks HTTP/2 (RFC 9113) frame by frame,
// over a connection of its own as askHTTP does and for the same reason: the client of
// package grpc is made for many calls, and costs four times as much for one.
func askGRPC(check service.Check) question {
	request, err := grpcRequest(check)
	if err != nil {
		return func(context.Context) error { return err }
	}
	return func(ctx context.Context) error {
		conn, err := reachGRPC(ctx, check)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
		if _, err := conn.Write(request); err != nil {
			return fmt.Errorf("cannot ask %s: %w", check.Target(), err)
		}
		answer, err := hearGRPC(conn)
		if err != nil {
			return fmt.Errorf("cannot read the answer of %s: %w", check.Target(), err)
		}
		return answer.judge(check)
	}
}

func reachGRPC(ctx context.Context, check service.Check) (net.Conn, error) {
	var config *tls.Config
	if check.TLS != nil {
		var err error
		if config, err = tlsOf(ctx, check.TLS); err != nil {
			return nil, err
		}
		config.NextProtos = []string{http2.NextProtoTLS}
	}
	return reach(ctx, check, check.Address, config)
}

// grpcRequest is all that is said at first: the preface, no wishes, and the call.
func grpcRequest(check service.Check) ([]byte, error) {
	message, err := proto.Marshal(&grpc_health_v1.HealthCheckRequest{Service: check.Service})
	if err != nil {
		return nil, err
	}
	scheme, authority := "http", check.Address
	if check.TLS != nil {
		scheme = "https"
		if check.TLS.ServerName != "" {
			authority = check.TLS.ServerName
		}
	}
	var headers bytes.Buffer
	encoder := hpack.NewEncoder(&headers)
	for _, h := range []hpack.HeaderField{
		{Name: ":method", Value: http.MethodPost}, {Name: ":scheme", Value: scheme},
		{Name: ":path", Value: grpc_health_v1.Health_Check_FullMethodName}, {Name: ":authority", Value: authority},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "gladsheim-health"}, {Name: "te", Value: "trailers"},
	} {
		if err := encoder.WriteField(h); err != nil {
			return nil, err
		}
	}
	var text bytes.Buffer
	text.WriteString(http2.ClientPreface)
	frames := http2.NewFramer(&text, nil)
	err = errors.Join(
		frames.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}),
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: theStream, BlockFragment: headers.Bytes(), EndHeaders: true}),
		frames.WriteData(theStream, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)),
	)
	return text.Bytes(), err
}

// grpcAnswer is what came on the stream.
type grpcAnswer struct {
	status  string // of HTTP
	code    string // of gRPC, "" if none came
	words   string // with that code
	message []byte // with its head
}

// hearGRPC reads until the stream ends.
func hearGRPC(conn io.ReadWriter) (a grpcAnswer, err error) {
	frames := http2.NewFramer(conn, bufio.NewReader(io.LimitReader(conn, 2*maxAnswer)))
	frames.SetMaxReadFrameSize(maxAnswer)
	frames.ReadMetaHeaders, frames.MaxHeaderListSize = hpack.NewDecoder(4096, nil), maxHeaders
	for {
		frame, err := frames.ReadFrame()
		if err != nil {
			return a, err
		}
		over := false
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = frames.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = frames.WritePing(true, f.Data)
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID < theStream {
				err = fmt.Errorf("it takes no calls (GOAWAY, %v %s)", f.ErrCode, f.DebugData())
			}
		case *http2.RSTStreamFrame:
			err = fmt.Errorf("it ended the call (RST_STREAM, %v)", f.ErrCode)
		case *http2.MetaHeadersFrame:
			a.take(f)
			over = f.StreamEnded()
		case *http2.DataFrame:
			a.message = append(a.message, f.Data()...)
			over = f.StreamEnded()
		}
		if err != nil || over {
			return a, err
		}
	}
}

// take takes headers or trailers.
func (a *grpcAnswer) take(f *http2.MetaHeadersFrame) {
	for _, h := range f.Fields {
		switch h.Name {
		case ":status":
			a.status = h.Value
		case "grpc-status":
			a.code = h.Value
		case "grpc-message":
			a.words = h.Value
		}
	}
}

// judge tells why a service is not well, nil if it is.
func (a *grpcAnswer) judge(check service.Check) error {
	if a.status != "200" {
		return fmt.Errorf("%s answered HTTP status %s, which is none of gRPC", check.Target(), a.status)
	}
	code, err := strconv.ParseUint(a.code, 10, 32)
	if err != nil {
		return fmt.Errorf("%s answered without a status of gRPC (grpc-status %q)", check.Target(), a.code)
	}
	if code != uint64(codes.OK) {
		words, err := url.PathUnescape(a.words) // percent-encoded
		if err != nil {
			words = a.words
		}
		return status.Error(codes.Code(code), words)
	}
	if len(a.message) < grpcHead || a.message[0] != 0 || uint64(binary.BigEndian.Uint32(a.message[1:])) != uint64(len(a.message)-grpcHead) {
		return fmt.Errorf("%s answered no message that can be read", check.Target())
	}
	var reply grpc_health_v1.HealthCheckResponse
	if err := proto.Unmarshal(a.message[grpcHead:], &reply); err != nil {
		return fmt.Errorf("%s answered no health: %w", check.Target(), err)
	}
	if reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("%s answered %s", check.Address, reply.GetStatus())
	}
	return nil
}
