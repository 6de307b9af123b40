// Package admission refuses objects that the mesh could not use before they are
// stored, in the words in which their status would complain.
//
//	kubectl apply ─▶ API server ── AdmissionReview, TLS ──▶ Server ─▶ Review ─▶ compile.Validate
//	                     ▲  │                                            │
//	     ValidatingWebhookConfiguration ◀── caBundle, failurePolicy ── Keeper (leader)
//
// Every replica serves. What an object would come to is judged by the same
// functions that compile it, so that nothing is refused that would have been taken,
// or the other way round. A change that repairs, leaves as it was or deletes is never
// refused.
//
// The API server is told to refuse what cannot be judged (failurePolicy: Fail)
// only after it has been seen to reach the webhook: a mesh that is half installed
// stands in nobody's way.
//
// A Server is safe for concurrent use.
package admission

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Path is where reviews are asked for.
const Path = "/validate"

// Limits. Whoever reaches the port may ask; the API server's own limit is 3 MB an
// object, of which an update has two.
const (
	maxBody    = 7 << 20
	maxReading = 8  // of one address at a time; others wait
	maxReviews = 16 // at a time; others wait
	maxHeader  = 64 << 10
	maxName    = 253 // of what is logged

	headerTime = 5 * time.Second
	bodyTime   = 10 * time.Second
	answerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	closeTime  = 5 * time.Second
)

// Config configures a Server.
type Config struct {
	Listen      string
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Judge       Judge
	Log         *slog.Logger
	Metrics     prometheus.Registerer // nil = none
}

// Server answers the API server's reviews.
type Server struct {
	cfg     Config
	readers readers
	slots   chan struct{}
	bound   chan net.Addr

	passed, failed, broken *prometheus.CounterVec
}

// New returns a Server that listens to nothing before Run.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, readers: readers{by: map[string]*reader{}}, slots: make(chan struct{}, maxReviews), bound: make(chan net.Addr, 1)}
	resource := []string{"group", "version", "resource"}
	s.passed = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_passed", Help: "Objects that the webhook admitted."}, resource)
	s.failed = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_failed", Help: "Objects that the webhook refused, by reason."}, append(resource, "reason"))
	s.broken = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_http_error", Help: "Requests to the webhook that were no reviews, by HTTP status."}, []string{"status"})
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(s.passed, s.failed, s.broken)
	}
	return s
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	lis, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.bound <- lis.Addr()
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: headerTime, ReadTimeout: bodyTime, WriteTimeout: answerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		TLSConfig:   &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: s.cfg.Certificate},
		ErrorLog:    slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug), // handshakes of whoever
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		if h.Shutdown(closing) != nil {
			_ = h.Close() // those that did not end in time
		}
	})
	s.cfg.Log.Info("serving the validating webhook", "address", lis.Addr().String())
	err = h.ServeTLS(lis, "", "")
	if stop() { // it did not end because of ctx
		return fmt.Errorf("serve: %w", err)
	}
	<-stopped
	return nil
}

// Addr returns the address once it is listened on.
func (s *Server) Addr(ctx context.Context) (net.Addr, error) {
	select {
	case addr := <-s.bound:
		s.bound <- addr
		return addr, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ServeHTTP answers one review. It is read before it takes a place among those that
// are judged: who sends slowly holds up itself.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.readers.enter(r) {
		return
	}
	req, version, code, err := s.read(w, r)
	if err != nil {
		s.broken.WithLabelValues(strconv.Itoa(code)).Inc()
		http.Error(w, err.Error(), code)
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-r.Context().Done():
		return
	}
	answer := Review(s.cfg.Judge, req)
	s.count(req, answer)
	review := admissionv1.AdmissionReview{Response: answer}
	review.APIVersion, review.Kind = version, "AdmissionReview"
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review) // the API server is gone; there is nobody to tell
}

// read decodes in a place among the readers, and gives it back.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (req *admissionv1.AdmissionRequest, version string, code int, err error) {
	defer s.readers.leave(r)
	return decode(w, r)
}

// decode reads a review, or says with which status it is refused.
func decode(w http.ResponseWriter, r *http.Request) (req *admissionv1.AdmissionRequest, version string, code int, err error) {
	switch mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); {
	case r.URL.Path != Path:
		return nil, "", http.StatusNotFound, errors.New("reviews are at " + Path)
	case r.Method != http.MethodPost:
		return nil, "", http.StatusMethodNotAllowed, errors.New("reviews are posted")
	case mediaType != "application/json":
		return nil, "", http.StatusUnsupportedMediaType, errors.New("reviews are application/json")
	}
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&review); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, "", http.StatusRequestEntityTooLarge, err
		}
		return nil, "", http.StatusBadRequest, fmt.Errorf("review: %w", err)
	}
	if review.Kind != "AdmissionReview" || review.APIVersion != "admission.k8s.io/v1" || review.Request == nil {
		return nil, "", http.StatusBadRequest, errors.New("review: want an AdmissionReview of admission.k8s.io/v1 with a request")
	}
	return review.Request, review.APIVersion, 0, nil
}

// count counts an answer, but for the leader's own trials.
func (s *Server) count(req *admissionv1.AdmissionRequest, answer *admissionv1.AdmissionResponse) {
	if req.Name == trialName {
		return
	}
	group, version, resource := labels(req.Resource)
	if answer.Allowed {
		s.passed.WithLabelValues(group, version, resource).Inc()
		return
	}
	s.failed.WithLabelValues(group, version, resource, "invalid_resource").Inc()
	s.cfg.Log.Info("object refused", "kind", clip(req.Kind.Kind, maxName), "namespace", clip(req.Namespace, maxName), "name", clip(req.Name, maxName), "why", answer.Result.Message)
}

// other stands for what is no resource that the API server asks about.
const other = "other"

// labels are a resource's labels in metrics. There are a few: anybody may ask, and
// about anything.
func labels(r metav1.GroupVersionResource) (group, version, resource string) {
	reviewed := map[string][]string{
		"security.istio.io":         {"authorizationpolicies", "peerauthentications"},
		"networking.istio.io":       {"serviceentries", "workloadentries"},
		"gateway.networking.k8s.io": {"gateways", "httproutes"},
	}
	if !slices.Contains(reviewed[r.Group], r.Resource) {
		return other, other, other
	}
	if !slices.Contains([]string{"v1", "v1beta1", "v1alpha3"}, r.Version) {
		return r.Group, other, r.Resource
	}
	return r.Group, r.Version, r.Resource
}
