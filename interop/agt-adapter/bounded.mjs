/** A Map that forgets its oldest entry when it is full: what a peer can make grow needs a limit. */
export class BoundedMap extends Map {
  #limit;

  constructor(limit) {
    super();
    this.#limit = limit;
  }

  set(key, value) {
    super.set(key, value);
    if (this.size > this.#limit) this.delete(this.keys().next().value);
    return this;
  }
}
