import CIntFlashAttention
import IntFlashAttention
import IntFlashAttentionCUDA

extension Precision {
  /// The precision of this name; NULL is the default.
  init(named name: UnsafePointer<CChar>?) throws(AttentionError) {
    guard let name = unsafe name else {
      self = .int8
      return
    }
    let text = unsafe String(cString: name)
    guard let precision = Precision(rawValue: text) else {
      throw AttentionError(
        .invalidArgument,
        "precision is '\(text)'; it must be one of "
          + Precision.allCases.map(\.rawValue).joined(separator: ", ")
      )
    }
    self = precision
  }
}

extension AttentionOptions {
  /// The options of a struct; NULL is all defaults, with this mask.
  ///
  /// `shape` is what blocks have to fit; nil where they are refused.
  init(
    _ pointer: UnsafePointer<intfa_options>?,
    default mask: AttentionMask = .full,
    shape: AttentionShape?
  ) throws(AttentionError) {
    guard let pointer = unsafe pointer else {
      self.init(mask: mask)
      return
    }
    let options = unsafe try CStruct.read(pointer, "options", intfa_options())
    let blocks = unsafe options.blocks
    if unsafe blocks != nil, shape == nil {
      throw AttentionError(.unsupported, "blocks are given; attention to caches does not take them")
    }
    self.init(
      softmaxScale: unsafe options.softmax_scale.map { unsafe $0.pointee },
      softcap: unsafe options.softcap.map { unsafe $0.pointee },
      mask: unsafe try AttentionMask(options),
      blocks: try shape.flatMap { (shape) throws(AttentionError) in
        unsafe try VisibleBlocks(blocks, shape)
      }
    )
  }
}

extension AttentionMask {
  init(_ options: intfa_options) throws(AttentionError) {
    let kind = unsafe Int(options.mask)
    let left = unsafe options.window_left.map { unsafe Int($0.pointee) }
    let right = unsafe options.window_right.map { unsafe Int($0.pointee) }
    let prefix = unsafe Int(options.prefix)
    guard (left == nil && right == nil) || kind == INTFA_MASK_SLIDING else {
      throw AttentionError(
        .invalidArgument,
        "options: a window is given, but mask is \(kind); it must be INTFA_MASK_SLIDING"
      )
    }
    guard prefix == 0 || kind == INTFA_MASK_PREFIX_CAUSAL else {
      throw AttentionError(
        .invalidArgument,
        "options: prefix is \(prefix), but mask is \(kind); it must be INTFA_MASK_PREFIX_CAUSAL"
      )
    }
    switch kind {
    case INTFA_MASK_FULL: self = .full
    case INTFA_MASK_CAUSAL: self = .causal
    case INTFA_MASK_SLIDING: self = .sliding(left: left, right: right)
    case INTFA_MASK_PREFIX_CAUSAL: self = .prefixCausal(prefix: prefix)
    default:
      throw AttentionError(
        .invalidArgument,
        "options: mask is \(kind), which is not one of intfa_mask_kind"
      )
    }
  }
}

extension VisibleBlocks {
  /// nil for NULL.
  init?(
    _ pointer: UnsafePointer<intfa_visible_blocks>?,
    _ shape: AttentionShape
  ) throws(AttentionError) {
    guard let pointer = unsafe pointer else { return nil }
    let blocks = unsafe try CStruct.read(pointer, "blocks", intfa_visible_blocks())
    let (queryLength, keyLength) = unsafe (
      Int(blocks.query_block_length), Int(blocks.key_block_length)
    )
    // Lengths first: how much may be read follows from them.
    let empty = try VisibleBlocks(
      queryBlockLength: queryLength,
      keyBlockLength: keyLength,
      visible: []
    )
    let rows = (shape.queryLength + queryLength - 1) / queryLength
    let columns = empty.keyBlockCount(keyValueLength: shape.keyValueLength)
    guard unsafe blocks.query_block_count == rows else {
      throw AttentionError(
        .shapeMismatch,
        "blocks: query_block_count is \(unsafe blocks.query_block_count), but \(shape.queryLength) "
          + "queries are \(rows) blocks of \(queryLength)"
      )
    }
    let offsets = unsafe try require(blocks.offsets, "blocks: offsets")
    let visible = unsafe try require(blocks.visible, "blocks: visible")
    guard unsafe offsets[0] == 0 else {
      throw AttentionError(
        .invalidArgument,
        "blocks: offsets begin with \(unsafe offsets[0]); it must be 0"
      )
    }
    var lists: [[Int]] = []
    for row in 0..<rows {
      let (first, end) = unsafe (Int(offsets[row]), Int(offsets[row + 1]))
      let (count, overflow) = end.subtractingReportingOverflow(first)
      guard !overflow, count >= 0, count <= columns else {
        throw AttentionError(
          .invalidArgument,
          "blocks: offsets of query block \(row) are \(first) and \(end); it can see 0 to \(columns) "
            + "key blocks"
        )
      }
      lists.append((first..<end).map { unsafe Int(visible[$0]) })
    }
    try self.init(queryBlockLength: queryLength, keyBlockLength: keyLength, visible: lists)
  }
}

/// The backend that a struct describes.
func makeBackend(
  _ pointer: UnsafePointer<intfa_backend>?
) throws(AttentionError) -> any AttentionBackend {
  guard let pointer = unsafe pointer else { return CPUBackend() }
  let backend = unsafe try CStruct.read(pointer, "backend", intfa_backend())
  let name = unsafe backend.name.map { unsafe String(cString: $0) } ?? "cpu"
  let device = unsafe Int(backend.device)
  let threads = unsafe backend.thread_count.map { unsafe Int($0.pointee) }
  let instructions = unsafe backend.instruction_set.map { unsafe String(cString: $0) }
  if device != 0 && name != "cuda" {
    throw AttentionError(
      .invalidArgument,
      "backend: device is \(device), but backend '\(name)' has one device, 0"
    )
  }
  for (member, isGiven) in [
    ("thread_count", threads != nil), ("instruction_set", instructions != nil),
  ] where isGiven && name != "cpu" {
    throw AttentionError(
      .invalidArgument,
      "backend: \(member) is given, but backend '\(name)' does not take it"
    )
  }
  switch name {
  case "cpu":
    return CPUBackend(threadCount: threads, instructionSet: try instructions.map(instructionSet))
  case "cuda":
    return device == INTFA_CURRENT_DEVICE
      ? CUDABackend(on: try CUDADevice.current()) : CUDABackend(device: device)
  case "reference": return ReferenceBackend()
  default:
    throw AttentionError(
      .invalidArgument,
      "backend: name is '\(name)'; it must be cpu, cuda or reference"
    )
  }
}

private func instructionSet(_ name: String) throws(AttentionError) -> InstructionSet {
  guard let set = InstructionSet(rawValue: name) else {
    throw AttentionError(
      .invalidArgument,
      "backend: instruction_set is '\(name)'; it must be one of "
        + InstructionSet.allCases.map(\.rawValue).joined(separator: ", ")
    )
  }
  return set
}
