package trust

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/culvert-mesh/culvert/pkg/certs/selfsigned"
)

func TestWrong(t *testing.T) {
	t.Parallel()
	want, other, none := hashOf("a"), hashOf("b"), hash{}
	for name, c := range map[string]struct {
		known      bool
		held, want hash
		wrong      bool
	}{
		"missing":                        {true, none, want, true},
		"changed":                        {true, other, want, true},
		"right":                          {true, want, want, false},
		"the namespace goes":             {false, other, want, false},
		"there are no roots":             {true, none, none, false},
		"there are no roots yet, it has": {true, other, none, false},
	} {
		if got := wrong(c.known, c.held, c.want); got != c.wrong {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// cluster is an API server with a leader.
type cluster struct {
	*fake.Clientset
	t         *testing.T
	authority *selfsigned.Authority
	stop      func()
}

func newCluster(t *testing.T, namespaces ...string) *cluster {
	c := &cluster{Clientset: fake.NewClientset(), t: t, authority: selfsigned.New()}
	for _, n := range namespaces {
		c.namespace(n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- New(Config{Client: c, Authority: c.authority}).Run(ctx) }()
	c.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	settle()
	return c
}

func settle() { time.Sleep(time.Second); synctest.Wait() }

func (c *cluster) namespace(name string) {
	c.t.Helper()
	if _, err := c.CoreV1().Namespaces().Create(c.t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// use gives the authority a new root.
func (c *cluster) use() {
	c.t.Helper()
	st, err := selfsigned.NewState(time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	c.authority.Use(st.Material())
	settle()
}

// roots is what a namespace holds; "" without a ConfigMap.
func (c *cluster) roots(namespace string) string {
	c.t.Helper()
	m, err := c.CoreV1().ConfigMaps(namespace).Get(c.t.Context(), Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ""
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return m.Data[Key]
}

func (c *cluster) expect(what string, namespaces ...string) {
	c.t.Helper()
	for _, n := range namespaces {
		if got := c.roots(n); got != string(c.authority.RootsPEM()) {
			c.t.Errorf("%s: %s holds %.40q", what, n, got)
		}
	}
}

// writes counts the writes since the last call.
func (c *cluster) writes() int {
	n := 0
	for _, a := range c.Actions() {
		if a.GetVerb() == "patch" {
			n++
		}
	}
	c.ClearActions()
	return n
}

func (c *cluster) change(namespace, roots string) {
	c.t.Helper()
	m, err := c.CoreV1().ConfigMaps(namespace).Get(c.t.Context(), Name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	m = m.DeepCopy()
	m.Data = map[string]string{Key: roots, "theirs": "stays"}
	if _, err = c.CoreV1().ConfigMaps(namespace).Update(c.t.Context(), m, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func TestBundles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a", "b")
		if c.writes() != 0 {
			t.Error("wrote before there were roots")
		}
		c.use()
		c.expect("first roots", "a", "b")
		c.namespace("new")
		settle()
		c.expect("a new namespace", "new")
		if n := c.writes(); n != 3 {
			t.Errorf("%d writes for 3 namespaces", n)
		}
		time.Sleep(calm)

		c.change("a", "theirs")
		settle()
		c.expect("changed", "a")
		if m, _ := c.CoreV1().ConfigMaps("a").Get(t.Context(), Name, metav1.GetOptions{}); m.Data["theirs"] != "stays" {
			t.Error("what others keep there is gone")
		}
		if err := c.CoreV1().ConfigMaps("b").Delete(t.Context(), Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		settle()
		c.expect("deleted", "b")

		c.use()
		c.expect("other roots", "a", "b", "new")

		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new", DeletionTimestamp: new(metav1.Now()), Finalizers: []string{"x"}}}
		if _, err := c.CoreV1().Namespaces().Update(t.Context(), ns, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(calm)
		c.writes()
		if err := c.CoreV1().ConfigMaps("new").Delete(t.Context(), Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		settle()
		if got := c.roots("new"); got != "" || c.writes() != 0 {
			t.Error("wrote into a namespace that is being deleted")
		}
		c.stop()
	})
}

// Each of many namespaces is written once, and a leader that finds them right
// writes none.
func TestManyNamespaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprintf("ns-%d", i))
		}
		c := newCluster(t, names...)
		c.use()
		c.expect("roots", names...)
		if n := c.writes(); n != len(names) {
			t.Errorf("%d writes for %d namespaces", n, len(names))
		}
		c.stop()
		next := New(Config{Client: c, Authority: c.authority})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := next.Run(ctx); err != nil {
			t.Error(err)
		}
		if n := c.writes(); n != 0 {
			t.Errorf("the next leader wrote %d times", n)
		}
	})
}

// Somebody who insists on other roots does not keep the leader busy.
func TestQuarrel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "a")
		c.use()
		c.writes()
		total := 0
		for range 600 {
			if strings.HasPrefix(c.roots("a"), "-----BEGIN") {
				c.change("a", "theirs")
			}
			time.Sleep(time.Second)
			synctest.Wait()
			total += c.writes()
		}
		if total < 10 || total > 60 {
			t.Errorf("%d writes in 10 minutes of quarrel", total)
		}
		c.stop()
	})
}
