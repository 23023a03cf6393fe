package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/gladsheim/gladsheim/agent/service"
)

// maxRequestID is the length of the longest id that a request may have.
const maxRequestID = 64

// identified is a request that may have an id.
type identified interface {
	proto.Message
	GetRequestId() string
}

// requestID reads the id of a request, "" for none. It is not valid when it is too
// long or no printable ASCII.
func requestID(req identified) (id string, valid bool) {
	id = req.GetRequestId()
	strange := strings.IndexFunc(id, func(r rune) bool { return r < ' ' || r > '~' })
	return id, len(id) <= maxRequestID && strange < 0
}

// toRequest tells req from others that have its id, by all that it asks for.
func toRequest(req identified) (service.Request, error) {
	id, valid := requestID(req)
	if !valid {
		return service.Request{}, &service.Error{Op: "read request", Kind: service.Invalid, Faults: []service.Fault{{
			Field: "request_id", Message: fmt.Sprintf("is not at most %d printable ASCII characters", maxRequestID),
		}}}
	}
	if id == "" {
		return service.Request{}, nil
	}
	body := proto.Clone(req).ProtoReflect()
	body.Clear(body.Descriptor().Fields().ByName("request_id"))
	asked, err := proto.MarshalOptions{Deterministic: true}.Marshal(body.Interface())
	if err != nil {
		return service.Request{}, fmt.Errorf("cannot write down a request: %w", err)
	}
	digest := sha256.Sum256(append([]byte(body.Descriptor().FullName()+"\n"), asked...))
	return service.Request{ID: id, Body: hex.EncodeToString(digest[:16])}, nil
}
