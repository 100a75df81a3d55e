// Image bytes to model input as in preprocessing.json, with Pillow's arithmetic: crop of the evaluation view, antialiased
// resize in fixed point, normalisation in float32. The canvas only decodes, because its resize differs from Pillow's.

const Preprocess = (() => {
  // Python's round: halves to even.
  const round = (value) => {
    const low = Math.floor(value);
    if (value - low !== 0.5) return Math.round(value);
    return low % 2 === 0 ? low : low + 1;
  };

  // [left, upper, right, lower] in pixels of the image, with fractions.
  const box = (width, height, rule) => {
    const outW = rule.reference_width;
    const outH = rule.reference_height;
    let resizedW;
    let resizedH;
    if (rule.crop_mode === "squash") {
      resizedW = Math.floor(outW / rule.crop_pct);
      resizedH = Math.floor(outH / rule.crop_pct);
    } else if (outW === outH) {
      const short = Math.floor(outH / rule.crop_pct);
      resizedW = width <= height ? short : Math.trunc((short * width) / height);
      resizedH = width <= height ? Math.trunc((short * height) / width) : short;
    } else {
      const targetH = Math.floor(outH / rule.crop_pct);
      const targetW = Math.floor(outW / rule.crop_pct);
      const ratio = Math.min(height / targetH, width / targetW);
      resizedH = round(height / ratio);
      resizedW = round(width / ratio);
    }
    resizedW = Math.max(resizedW, outW);
    resizedH = Math.max(resizedH, outH);
    const left = round((resizedW - outW) / 2);
    const upper = round((resizedH - outH) / 2);
    const stepX = width / resizedW;
    const stepY = height / resizedH;
    return [
      left * stepX, upper * stepY,
      Math.min((left + outW) * stepX, width), Math.min((upper + outH) * stepY, height),
    ];
  };

  const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
  const FILTERS = {
    bilinear: { support: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
    bicubic: {
      support: 2,
      at: (x) => {
        const a = -0.5;
        const d = Math.abs(x);
        if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
        return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
      },
    },
    lanczos: { support: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  };
  const BITS = 22;

  // For each output position: the first input position, and the weights from there on, times 2^22.
  const weights = (inSize, from, to, outSize, filter) => {
    const scale = Math.fround(to - from) / outSize;
    const stretch = Math.max(scale, 1);
    const support = filter.support * stretch;
    return Array.from({ length: outSize }, (_, place) => {
      const center = from + (place + 0.5) * scale;
      const first = Math.max(0, Math.trunc(center - support + 0.5));
      const last = Math.min(inSize, Math.trunc(center + support + 0.5));
      const own = [];
      let sum = 0;
      for (let x = first; x < last; x += 1) {
        const weight = filter.at((x - center + 0.5) * (1 / stretch));
        own.push(weight);
        sum += weight;
      }
      const fixed = own.map((weight) => {
        const part = (sum === 0 ? weight : weight / sum) * 2 ** BITS;
        return Math.trunc(part + (part < 0 ? -0.5 : 0.5));
      });
      return { first, fixed };
    });
  };

  const clip = (sum) => {
    const value = Math.floor(sum / 2 ** BITS);
    return value < 0 ? 0 : value > 255 ? 255 : value;
  };

  // {width, height, data} of RGB bytes, row by row -> the same of the box, resized; horizontally, then vertically, as
  // Pillow. For images that shrink far more in height Pillow 13 swaps the order, which changes values by 1 at most.
  const resize = (picture, region, outW, outH, interpolation) => {
    // Pillow has the box in float32.
    const [left, upper, right, lower] = region.map(Math.fround);
    if (interpolation === "nearest") return nearest(picture, [left, upper, right, lower], outW, outH);
    const filter = FILTERS[interpolation];
    const { width, height, data } = picture;
    let wide = data;
    let wideW = width;
    if (outW !== width || left !== 0 || right !== outW) {
      const across = weights(width, left, right, outW, filter);
      wide = new Uint8ClampedArray(outW * height * 3);
      wideW = outW;
      for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < outW; x += 1) {
          const { first, fixed } = across[x];
          let r = 2 ** (BITS - 1);
          let g = r;
          let b = r;
          for (let i = 0, at = (y * width + first) * 3; i < fixed.length; i += 1, at += 3) {
            r += data[at] * fixed[i];
            g += data[at + 1] * fixed[i];
            b += data[at + 2] * fixed[i];
          }
          wide.set([clip(r), clip(g), clip(b)], (y * outW + x) * 3);
        }
      }
    }
    if (outH === height && upper === 0 && lower === outH) return { width: wideW, height, data: wide };
    const down = weights(height, upper, lower, outH, filter);
    const found = new Uint8ClampedArray(wideW * outH * 3);
    for (let y = 0; y < outH; y += 1) {
      const { first, fixed } = down[y];
      for (let x = 0; x < wideW * 3; x += 1) {
        let sum = 2 ** (BITS - 1);
        for (let i = 0; i < fixed.length; i += 1) sum += wide[(first + i) * wideW * 3 + x] * fixed[i];
        found[y * wideW * 3 + x] = clip(sum);
      }
    }
    return { width: wideW, height: outH, data: found };
  };

  const nearest = ({ width, height, data }, [left, upper, right, lower], outW, outH) => {
    const found = new Uint8ClampedArray(outW * outH * 3);
    for (let y = 0; y < outH; y += 1) {
      const row = Math.min(height - 1, Math.floor(upper + (y + 0.5) * ((lower - upper) / outH)));
      for (let x = 0; x < outW; x += 1) {
        const column = Math.min(width - 1, Math.floor(left + (x + 0.5) * ((right - left) / outW)));
        const at = (row * width + column) * 3;
        found.set(data.subarray(at, at + 3), (y * outW + x) * 3);
      }
    }
    return { width: outW, height: outH, data: found };
  };

  // Upright by EXIF orientation, colours as in the file, transparency over white.
  const decode = async (blob) => {
    const bitmap = await createImageBitmap(blob, {
      imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none",
    });
    const { width, height } = bitmap;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(bitmap, 0, 0);
    bitmap.close();
    const rgba = pen.getImageData(0, 0, width, height).data;
    const data = new Uint8ClampedArray(width * height * 3);
    for (let at = 0, to = 0; at < rgba.length; at += 4, to += 3) {
      const alpha = rgba[at + 3];
      for (let c = 0; c < 3; c += 1) {
        data[to + c] = alpha === 255 ? rgba[at + c] : (rgba[at + c] * alpha + 255 * (255 - alpha)) / 255;
      }
    }
    return { width, height, data };
  };

  // Decoded image -> cropped and resized bytes, {width, height, data}.
  const crop = (picture, rule) =>
    resize(
      picture, box(picture.width, picture.height, rule.steps.crop), rule.steps.resize.width, rule.steps.resize.height,
      rule.steps.resize.interpolation,
    );

  // Bytes -> model input, channels first: bytes, values from 0 to 1, or normalised values.
  const input = ({ width, height, data }, spec) => {
    const plane = width * height;
    const bytes = spec.dtype === "uint8";
    const values = bytes ? new Uint8Array(3 * plane) : new Float32Array(3 * plane);
    const [mean, std] = [spec.mean, spec.std].map((list) => list.map(Math.fround));
    for (let c = 0; c < 3; c += 1) {
      for (let at = 0; at < plane; at += 1) {
        const byte = data[3 * at + c];
        const share = Math.fround(byte / 255);
        if (bytes) values[c * plane + at] = byte;
        else if (spec.normalisation_in_graph) values[c * plane + at] = share;
        else values[c * plane + at] = Math.fround(share - mean[c]) / std[c];
      }
    }
    return values;
  };

  return { box, crop, decode, input, resize };
})();
