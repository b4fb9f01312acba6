/* Search runs in a worker, which a browser refuses to a page that is opened from the disk (file:).
   Then the worker's script runs in a hidden frame of the same page, which talks in its place. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const base = new URL(address, location.href);
      this.onmessage = null;
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      const parent = this;
      this.inside.postMessage = (data) => {
        // What the script says goes out; the worker's own postMessage has the same name.
        const event = new MessageEvent("message", { data });
        parent.dispatchEvent(event);
        if (parent.onmessage) parent.onmessage(event);
      };
      const load = (url, then) => {
        const script = frame.contentDocument.createElement("script");
        script.src = new URL(url, base);
        script.onload = then;
        frame.contentDocument.body.appendChild(script);
      };
      this.inside.importScripts = (...urls) =>
        Promise.all(urls.map((url) => new Promise((then) => load(url, then))));
      load(base, () => {
        const held = this.waiting;
        this.waiting = null;
        held.forEach((data) => this.postMessage(data));
      });
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() {
      this.inside.frameElement.remove();
    }
  };
}
