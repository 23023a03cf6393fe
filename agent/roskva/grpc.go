package roskva

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

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
	// frameHead is what comes before the payload of a frame of HTTP/2: its length, its type,
	// its flags and its stream.
	frameHead = 3 + 1 + 1 + 4
	// grpcHead is what comes before a message: whether it is compressed, and its length.
	grpcHead = 1 + 4
	// maxHeaders is as much of headers as is read.
	maxHeaders = 16 << 10
)

// grpcServer is asked by grpc.health.v1.Health/Check. HTTP/2 (RFC 9113) is spoken frame by
// frame, as httpServer speaks HTTP and for the same reason: the client of package grpc is made
// for many calls, and costs several times as much for one.
func grpcServer(check service.Check) (*server, error) {
	request, err := grpcRequest(check)
	if err != nil {
		return nil, err
	}
	s := &server{check: check, address: check.Address}
	if check.TLS != nil {
		s.secure = func(ctx context.Context) (*tls.Config, error) {
			config, err := tlsOf(ctx, check.TLS)
			if err == nil {
				config.NextProtos = []string{http2.NextProtoTLS}
			}
			return config, err
		}
	}
	s.begin = func() exchange { return &grpcExchange{server: s, request: request} }
	return s, nil
}

// grpcRequest is all that is said at first: the preface, that nothing need be remembered for
// another call, and the call.
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
		frames.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}),
		frames.WriteHeaders(http2.HeadersFrameParam{StreamID: theStream, BlockFragment: headers.Bytes(), EndHeaders: true}),
		frames.WriteData(theStream, true, append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)),
	)
	return text.Bytes(), err
}

// grpcExchange finds where the answer ends, and has http2 read it then.
type grpcExchange struct {
	server  *server
	request []byte
	frames  int  // bytes of whole ones
	ending  bool // what comes is the last of the stream
	replies []byte
}

func (e *grpcExchange) opening() []byte { return e.request }

func (e *grpcExchange) owed() []byte {
	replies := e.replies
	e.replies = nil
	return replies
}

func (e *grpcExchange) hear(heard []byte, whole bool) (done bool, err error) {
	if !e.enough(heard) && !whole {
		return false, nil
	}
	answer, err := readGRPC(heard)
	if err != nil {
		return true, e.server.unread(err)
	}
	return true, answer.judge(e.server.check)
}

// enough goes from frame to frame, and tells whether the stream has ended, or will not be.
func (e *grpcExchange) enough(heard []byte) bool {
	for {
		frame := heard[e.frames:]
		if len(frame) < frameHead {
			return false
		}
		length := int(frame[0])<<16 | int(frame[1])<<8 | int(frame[2])
		if length > maxAnswer {
			return true // which readGRPC refuses
		}
		if len(frame) < frameHead+length {
			return false
		}
		e.frames += frameHead + length
		if e.over(http2.FrameType(frame[3]), http2.Flags(frame[4]), frame[frameHead:frameHead+length]) {
			return true
		}
	}
}

// over takes one frame, and tells whether none has to follow.
func (e *grpcExchange) over(kind http2.FrameType, flags http2.Flags, payload []byte) bool {
	switch kind {
	case http2.FrameSettings:
		if !flags.Has(http2.FlagSettingsAck) {
			e.replies = append(e.replies, 0, 0, 0, byte(http2.FrameSettings), byte(http2.FlagSettingsAck), 0, 0, 0, 0)
		}
	case http2.FramePing:
		if !flags.Has(http2.FlagPingAck) {
			e.replies = append(e.replies, 0, 0, byte(len(payload)), byte(http2.FramePing), byte(http2.FlagPingAck), 0, 0, 0, 0)
			e.replies = append(e.replies, payload...)
		}
	case http2.FrameGoAway:
		return len(payload) < 4 || binary.BigEndian.Uint32(payload)&^(1<<31) < theStream
	case http2.FrameRSTStream:
		return true
	case http2.FrameData:
		return flags.Has(http2.FlagDataEndStream)
	case http2.FrameHeaders:
		e.ending = flags.Has(http2.FlagHeadersEndStream)
		return e.ending && flags.Has(http2.FlagHeadersEndHeaders)
	case http2.FrameContinuation:
		return e.ending && flags.Has(http2.FlagContinuationEndHeaders)
	}
	return false
}

// grpcAnswer is what came on the stream.
type grpcAnswer struct {
	status  string // of HTTP
	code    string // of gRPC, "" if none came
	words   string // with that code
	message []byte // with its head
}

// readGRPC reads until the stream ends.
func readGRPC(heard []byte) (a grpcAnswer, err error) {
	frames := http2.NewFramer(nil, bytes.NewReader(heard))
	frames.SetMaxReadFrameSize(maxAnswer)
	frames.ReadMetaHeaders, frames.MaxHeaderListSize = hpack.NewDecoder(4096, nil), maxHeaders
	for {
		frame, err := frames.ReadFrame()
		if err != nil {
			return a, err
		}
		over := false
		switch f := frame.(type) {
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
