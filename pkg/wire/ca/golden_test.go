package ca

import (
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/culvert-mesh/culvert/pkg/wire/wiretest"
)

func TestGolden(t *testing.T) {
	t.Parallel()
	request := &IstioCertificateRequest{
		Csr: "PEM", ValidityDuration: 86400,
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
			ImpersonatedIdentity: structpb.NewStringValue("spiffe://td/ns/a/sa/b"),
		}},
	}
	response := &IstioCertificateResponse{CertChain: []string{"leaf", "inter", "roots"}}
	wiretest.Golden(t, "testdata/request.hex", request)
	wiretest.Golden(t, "testdata/response.hex", response)
	wiretest.Covers(t, File_pkg_wire_ca_ca_proto, request, response)
	if got, want := IstioCertificateService_CreateCertificate_FullMethodName, "/istio.v1.auth.IstioCertificateService/CreateCertificate"; got != want {
		t.Errorf("method = %s, want %s", got, want)
	}
}
